"""The API of one database."""

from __future__ import annotations

import asyncio

from services.api.application import make_application, run_loops
from services.api.container import make_parts
from services.api.http.security import check_exposure
from services.api.storage.database import open_database
from services.api.storage.writer_lock import Owner, own_database
from services.runtime.process import Service
from services.runtime.settings import Settings


class Api:
    """Owns the database from before it registers until it ends."""

    def __init__(self) -> None:
        self._owner: Owner | None = None

    def check(self, settings: Settings) -> None:
        """Lock the database. Raises `TurnoutError` if another API has it, or if other machines could use this one
        without a key."""
        check_exposure(settings)
        self._owner = own_database(settings)

    async def loops(self, service: Service) -> None:
        """Migrate the database, replace the plain health routes with the application, and run the loops while this
        process owns the database."""
        assert self._owner is not None
        database = await open_database(service.settings)
        parts = make_parts(service.settings, service.redis, database)
        try:
            await parts.runs.settle()
            service.app.router.routes.clear()
            # Not a mount, which would leave paths that contain line breaks to the plain application.
            service.app.router.default = make_application(parts)
            service.presence.state = "ready"
            async with asyncio.TaskGroup() as group:
                group.create_task(run_loops(parts))
                group.create_task(self._owner.lost())
        except BaseExceptionGroup as faults:
            raise faults.exceptions[0] from None
        finally:
            await parts.close()
