"""Start the API: `python -m services.api`."""

from __future__ import annotations

import sys

from services.api.application import make_application, run_loops
from services.api.database import open_database
from services.api.parts import make_parts
from services.api.security import check_exposure
from services.contracts.errors import TurnoutError
from services.runtime.life import Service, run_service
from services.runtime.settings import load_settings


async def loops(service: Service) -> None:
    """Migrate the database, put the application in place of the plain health routes, run the loops."""
    database = await open_database(service.settings)
    parts = make_parts(service.settings, service.redis, database)
    try:
        service.app.router.routes.clear()
        # Not a mount: that would leave paths with line breaks in them to the plain application.
        service.app.router.default = make_application(parts)
        service.presence.state = "ready"
        await run_loops(parts)
    finally:
        await parts.close()


def main() -> None:
    try:
        check_exposure(load_settings())
    except TurnoutError as error:
        print(f"turnout api: {error}", file=sys.stderr)
        sys.exit(2)
    run_service("api", loops)


if __name__ == "__main__":
    main()
