"""Stores the stream `turnout:events` in the database. Acknowledges after the commit; repeats are harmless."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis
from sqlalchemy.exc import InterfaceError, OperationalError, StatementError

from services.api.live.journal import Journal
from services.api.live.signals import Signals
from services.contracts import codec, streams
from services.contracts.events import Event, WeightsPublished
from services.runtime.logs import get_logger
from services.runtime.queue.queue import Delivery, Queue

log = get_logger(__name__)
BATCH = 200
BLOCK_SECONDS = 1.0
GATHER_SECONDS = 0.05
"""A step's events arrive one at a time: a short wait stores them in one transaction instead of three."""
RECLAIM_SECONDS = 30.0


class Ingest:
    """Consumes: events of all services. Produces: rows, states, wake-ups. Waits for: the stream, up to a second."""

    def __init__(self, redis: Redis, journal: Journal, signals: Signals, consumer: str) -> None:
        self.journal = journal
        self.signals = signals
        self.queue = Queue(redis, streams.GROUP_API, consumer)
        self._replayed = False

    async def step(self) -> int:
        """Handle one batch and return its size. The first round replays what was pending when the last process ended.

        The next round replays a batch that could not be stored: after any fault, processing restarts from what is
        pending.
        """
        if not self._replayed:
            deliveries: list[Delivery[Event]] = await self.queue.own_pending(streams.EVENTS, Event)
            deliveries += await self.queue.reclaim(streams.EVENTS, Event, idle_seconds=RECLAIM_SECONDS, count=BATCH)
            self._notice(deliveries)
        else:
            deliveries = await self._receive(BLOCK_SECONDS)
            if deliveries:
                self._replayed = False
                await asyncio.sleep(GATHER_SECONDS)
                deliveries += await self._receive(0.0)
            deliveries = await self._with_missed(deliveries)
        self._replayed = False
        try:
            await self.journal.store(delivery.message for delivery in deliveries)
            await self.queue.acknowledge(deliveries)
        except (StatementError, OverflowError) as error:
            if isinstance(error, OperationalError | InterfaceError):
                raise  # the database is unavailable: retry the whole batch later
            await self._store_singly(deliveries)
        self._replayed = True
        return len(deliveries)

    async def _receive(self, block_seconds: float) -> list[Delivery[Event]]:
        found: list[Delivery[Event]]
        found = await self.queue.receive([streams.EVENTS], Event, count=BATCH, block_seconds=block_seconds)
        self._notice(found)
        return found

    async def _with_missed(self, deliveries: list[Delivery[Event]]) -> list[Delivery[Event]]:
        """These deliveries and any that never reached this process, oldest first: state changes depend on the order."""
        in_hand = {delivery.message_id for delivery in deliveries}
        missed: list[Delivery[Event]] = []
        while found := await self.queue.missed(streams.EVENTS, Event, in_hand):
            missed += found
            in_hand |= {delivery.message_id for delivery in found}
        if not missed:
            return deliveries
        self._notice(missed)
        return sorted(deliveries + missed, key=lambda delivery: [int(part) for part in delivery.message_id.split("-")])

    def _notice(self, deliveries: list[Delivery[Event]]) -> None:
        """Wake the pusher before the event is stored: it reads the published version from Redis."""
        if any(isinstance(delivery.message, WeightsPublished) for delivery in deliveries):
            self.signals.push.set()

    async def _store_singly(self, deliveries: list[Delivery[Event]]) -> None:
        """Store the events one at a time; one that the database rejects goes to the dead letters and does not block the
        rest."""
        for delivery in deliveries:
            try:
                await self.journal.store([delivery.message])
                await self.queue.acknowledge([delivery])
            except (StatementError, OverflowError) as error:
                if isinstance(error, OperationalError | InterfaceError):
                    raise
                reason = f"the database rejected it: {type(error).__name__}"
                run_id, kind = delivery.message.run_id, type(delivery.message).__name__
                log.error("event refused", run_id=run_id, event_type=kind, error=str(error))
                payload = codec.encode(delivery.message)
                await self.queue.dead_letter(delivery.stream, delivery.message_id, payload, reason)
