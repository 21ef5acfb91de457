"""The learner's side of the turns on one GPU (`services.contracts.turns`)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, cast

from services.contracts import streams
from services.contracts.states import DesiredState
from services.contracts.turns import SERVER, WANTED, read_turn
from services.learner.connections.redis_link import RunLink
from services.runtime.connection import as_text

STOPS: frozenset[DesiredState] = frozenset({"stopped", "stopped_now"})
LOOK_SECONDS = 0.05


class Stopped(Exception):
    """The run was asked to stop before its last step."""


class GpuTurn:
    """Whose turn it is. A run that does not share its GPU has no use for it."""

    def __init__(self, link: RunLink) -> None:
        self._link = link
        self._wanted = ""

    def take(self, idle: Callable[[float], None], stops: frozenset[DesiredState] = STOPS) -> float:
        """Ask for the GPU, and return once the rollout server has freed it, with the seconds that took.

        Args:
            idle: sleeps, and raises what must not wait.
            stops: desired states that end the waiting.

        Raises:
            Stopped: the run is to stop.
        """
        started, self._wanted = time.monotonic(), uuid.uuid4().hex
        self._link.call(self._write())
        self._link.report(waiting_for="the rollout server to free the GPU")
        while self._link.call(self._granted()) != self._wanted:
            if self._link.call(self._desired()) in stops:
                raise Stopped
            idle(LOOK_SECONDS)
        self._link.report(waiting_for="")
        return time.monotonic() - started

    def give(self) -> None:
        """Leave the GPU to the rollout server. The learner must have freed its memory."""
        self._wanted = SERVER
        self._link.call(self._write())

    def say_again(self) -> None:
        """Write the turn again, in case Redis lost it: the server would wait indefinitely."""
        if self._wanted:
            self._link.call(self._write())

    async def _write(self) -> None:
        await self._link.queue.write_field(streams.turn(self._link.run_id), WANTED, self._wanted)

    async def _granted(self) -> str:
        """The request for which the server has freed the GPU. Writes this one again if a failover of Redis lost it:
        the server would continue with the turn before, and the learner would wait indefinitely."""
        found = read_turn(cast(Any, await self._link.redis.hgetall(streams.turn(self._link.run_id))))
        if found.wanted != self._wanted:
            await self._write()
        return found.asleep

    async def _desired(self) -> str:
        """Read here, since the link's loops start only once the model is loaded."""
        value = await self._link.redis.get(streams.desired(self._link.run_id))
        return "running" if value is None else as_text(value)
