"""Start the API: `python -m services.api`."""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from services.api.application import make_application, run_loops
from services.api.container import make_parts
from services.api.http.security import check_exposure
from services.api.storage.database import open_database
from services.api.storage.writer_lock import Owner, own_database
from services.contracts.errors import TurnoutError
from services.runtime.process import Service, run_service
from services.runtime.settings import load_settings


async def loops(owner: Owner, service: Service) -> None:
    """Migrate the database, put the application in place of the plain health routes, run the loops as long as the
    database is this process's own."""
    database = await open_database(service.settings)
    parts = make_parts(service.settings, service.redis, database)
    try:
        await parts.runs.settle()
        service.app.router.routes.clear()
        # Not a mount: that would leave paths with line breaks in them to the plain application.
        service.app.router.default = make_application(parts)
        service.presence.state = "ready"
        async with asyncio.TaskGroup() as group:
            group.create_task(run_loops(parts))
            group.create_task(owner.lost())
    except BaseExceptionGroup as faults:
        raise faults.exceptions[0] from None
    finally:
        await parts.close()


def main() -> None:
    try:
        settings = load_settings()
        check_exposure(settings)
        owner = own_database(settings)
    except TurnoutError as error:
        print(f"turnout api: {error}", file=sys.stderr)
        sys.exit(2)
    run_service("api", partial(loops, owner))


if __name__ == "__main__":
    main()
