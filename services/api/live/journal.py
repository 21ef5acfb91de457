"""Records everything that happens to runs: events in the database, states through the state machine.

Learner events (through `ingest`) and the API's own take the same path: one transaction stores the event under its
natural key, its row and its change of state; then listeners (event streams, metrics, loops) are notified. Storing an
event again changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from services.api.live.broadcaster import Broadcaster, Entry
from services.api.storage import history
from services.api.storage.database import Database
from services.api.storage.event_log import KINDS, append, event_data
from services.api.storage.runs import Run
from services.contracts import events
from services.contracts.errors import ConflictError
from services.contracts.states import TERMINAL_STATES, RunState, check_transition
from services.runtime.logs import get_logger

log = get_logger(__name__)
Listener = Callable[[events.Event], None]


class Journal:
    """Stores events, and notifies listeners of those that were not stored before."""

    def __init__(self, database: Database, broadcaster: Broadcaster, source: str) -> None:
        self.database = database
        self.broadcaster = broadcaster
        self.source = source
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call `listener` with each new event after it is stored."""
        self._listeners.append(listener)

    async def store(self, batch: Iterable[events.Event]) -> None:
        """Store events that services report. Events of deleted runs and of evaluations are dropped."""
        batch = list(batch)
        stored: list[tuple[events.Event, Entry]] = []
        async with self.database.write() as session:
            for event in batch:
                stored += await self._store_one(session, event)
        self._tell(stored)

    async def _store_one(self, session: AsyncSession, event: events.Event) -> list[tuple[events.Event, Entry]]:
        run = await session.get(Run, event.run_id)
        if run is None:
            # Of a deleted run; or a note about an evaluation, which has no stream of events. Results do not come here.
            said = {"text": event.text} if isinstance(event, events.Note) else {}
            log.info("event without a run dropped", run_id=event.run_id, event_type=type(event).__name__, **said)
            return []
        if isinstance(event, events.RunStateChanged):
            try:
                check_transition(run.state, event.state)
            except ConflictError as error:
                # A late report by a learner that has not yet seen the latest request. The state machine wins.
                log.warning("state change ignored", run_id=run.id, error=str(error))
                return []
        entry = await self._append(session, event)
        if entry is None:
            return []
        if isinstance(event, events.RunStateChanged):
            apply_state(run, event.state, event.reason, event.at)
            run.learner_said = event.state
        elif isinstance(event, events.StepFinished):
            run.step = event.step
        await history.store(session, event)
        return [(event, entry)]

    async def change_state(
        self, session: AsyncSession, run: Run, new: RunState, reason: str = ""
    ) -> list[tuple[events.Event, Entry]]:
        """Move a run to another state within the caller's transaction. Pass the result to `tell` after it.

        Raises:
            ConflictError: the state machine forbids the move.
        """
        check_transition(run.state, new)
        if run.state == new:
            return []
        event = events.RunStateChanged(run_id=run.id, at=time.time(), state=new, reason=reason)
        apply_state(run, new, reason, event.at)
        entry = await self._append(session, event)
        return [] if entry is None else [(event, entry)]

    async def note(self, run_id: str, level: Literal["info", "warning", "error"], text: str) -> None:
        """Store a note from the API itself."""
        await self.store([events.Note(run_id=run_id, at=time.time(), level=level, source=self.source, text=text)])

    def tell(self, stored: Sequence[tuple[events.Event, Entry]]) -> None:
        """Notify listeners of events that a committed transaction has stored."""
        self._tell(stored)

    def _tell(self, stored: Sequence[tuple[events.Event, Entry]]) -> None:
        for event, entry in stored:
            self.broadcaster.publish(event.run_id, [entry])
            for listener in self._listeners:
                listener(event)

    async def _append(self, session: AsyncSession, event: events.Event) -> Entry | None:
        data = event_data(event)
        new_id = await append(session, event, data)
        return None if new_id is None else Entry(new_id, KINDS[type(event)].type, msgspec.json.encode(data).decode())


def apply_state(run: Run, new: RunState, reason: str, at: float) -> None:
    """Set the state and the times that go with it. The caller has checked the transition."""
    if run.state == new:
        return
    run.state, run.reason = new, reason
    if new == "queued":
        run.queued_at, run.finished_at = at, None
        run.learner_said = ""  # what it reported of an earlier attempt does not count
    elif new == "running" and run.started_at is None:
        run.started_at = at
    elif new in TERMINAL_STATES:
        run.finished_at = at
