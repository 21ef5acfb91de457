"""The loop that updates the board from Redis, so that a scrape does not wait for it."""

from __future__ import annotations

from redis.asyncio import Redis

from services.api.control.pusher import Pusher
from services.api.control.watchdog import Watchdog
from services.api.live.board import Board
from services.api.live.queues import queue_states
from services.api.metrics.federation import Federation
from services.api.storage import evaluations
from services.api.storage.database import Database
from services.contracts.states import ACTIVE_STATES
from services.runtime.presence import list_services


class MetricsRefresh:
    """Consumes: service records, queue depths, the watchdog's waits, the pusher's servers. Produces: the board."""

    def __init__(
        self, redis: Redis, database: Database, board: Board, federation: Federation, pusher: Pusher, watchdog: Watchdog
    ) -> None:
        self.redis = redis
        self.database = database
        self.board = board
        self.federation = federation
        self.pusher = pusher
        self.watchdog = watchdog

    async def step(self) -> None:
        board = self.board
        board.services = await list_services(self.redis)
        await board.refresh_runs(self.database)
        async with self.database.read() as session:
            board.evaluations = await evaluations.states(session)
        active = [run_id for run_id, (_, state) in board.states.items() if state in ACTIVE_STATES]
        board.queues = await queue_states(self.redis, active)
        board.waits = self.watchdog.waits
        board.out_of_rotation = {
            (server.run_id, name): int(server.is_out) for name, server in self.pusher.servers.items()
        }
        await self.federation.refresh(board.services)
