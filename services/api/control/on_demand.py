"""Models on demand: checkpoints and base models that are loaded onto idle rollout servers because someone asked.

They are kept in memory only. After a restart of the API, the scheduler takes their servers back, and the next request
loads them again. A model ends when it has not been used for a while, when a run, an evaluation or another model needs
its server, or when it cannot be loaded. `settle` is called by the scheduler in each round.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.api.control.assignment import Assigned, unserved
from services.contracts.errors import UnavailableError
from services.contracts.heartbeat import ServiceRecord
from services.contracts.run_config import RunConfig
from services.runtime.logs import get_logger

log = get_logger(__name__)
IDLE_SECONDS = 900.0
"""A model that has not been asked for this long is unloaded."""
KEEP_SECONDS = 30.0
"""A model that answered in this time keeps its server if another model is asked for, so that two conversations do not
take the only server from each other at every turn."""
LOAD_SECONDS = 300.0
"""How long a request waits for its model. Loading continues without it."""
LATER = "Send it again later, or ask one of the models that GET /v1/models lists."


@dataclass(slots=True, eq=False)
class OnDemandModel:
    """One model that was asked for."""

    id: str
    name: str
    """As clients call it: `run@step`, or the path of a base model."""
    config: RunConfig
    weights: Mapping[str, Any] | None
    """The version to load into the configuration's model, as announced in Redis; None for none."""
    root: str
    """The base model as users know it."""
    version: int
    created_at: float = field(default_factory=time.time)
    server: str | None = None
    is_ready: bool = False
    fault: str = ""
    """Why it has ended."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the model is ready or has ended."""
    num_requests: int = 0
    """In progress, those that wait for it included."""
    used_at: float = field(default_factory=time.monotonic)

    @property
    def unused_seconds(self) -> float:
        return 0.0 if self.num_requests else time.monotonic() - self.used_at

    def release(self) -> None:
        """Count a request as answered."""
        self.num_requests -= 1
        self.used_at = time.monotonic()

    def assigned(self) -> Assigned:
        """For the plan."""
        return Assigned(
            self.id,
            "running" if self.server else "queued",
            1,
            None,
            [self.server] if self.server else [],
            kind="model",
            num_gpus=self.config.rollout.tensor_parallel_size,
            name=self.name,
            is_replaceable=self.is_ready and self.unused_seconds > KEEP_SECONDS,
        )


class OnDemand:
    """The models that have a rollout server, or were just asked for."""

    def __init__(self, wake: Callable[[], None], discard: Callable[[str], Awaitable[None]]) -> None:
        """`wake` starts a round of the scheduler; `discard` deletes the files of the model with this id."""
        self._wake = wake
        self._discard = discard
        self._models: dict[str, OnDemandModel] = {}
        self._turn = asyncio.Lock()
        """So that two first requests for a model make it once."""

    @property
    def models(self) -> list[OnDemandModel]:
        return list(self._models.values())

    def find(self, name: str) -> OnDemandModel | None:
        return self._models.get(name)

    async def ask_for(self, name: str, make: Callable[[], Awaitable[OnDemandModel]]) -> OnDemandModel:
        """The model, which `make` prepares if it has not been asked for yet."""
        async with self._turn:
            if (model := self._models.get(name)) is None:
                model = self._models[name] = await make()
                self._wake()
        return model

    async def ready(self, model: OnDemandModel) -> None:
        """Wait until the model is ready. The caller must `release` it.

        Raises:
            UnavailableError: no server is free, the model cannot be loaded, or loading takes long.
        """
        model.num_requests += 1
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                await model.settled.wait()
            if model.fault:
                raise UnavailableError(model.fault, remedy=LATER)
        except TimeoutError:
            model.release()
            text = f"The model {model.name} is still being loaded after {LOAD_SECONDS:.0f} s."
            raise UnavailableError(text, remedy="Send the request again.") from None
        except BaseException:
            model.release()
            raise

    def assigned(self) -> list[Assigned]:
        """The models for the plan; the one that was used last comes first."""
        return [model.assigned() for model in sorted(self._models.values(), key=lambda model: model.unused_seconds)]

    async def settle(self, works: Sequence[Assigned], records: Mapping[str, ServiceRecord]) -> None:
        """Take over what was planned, and see which models are ready and which have ended."""
        planned = {work.run_id: work for work in works}
        for model in self.models:
            if (item := planned.get(model.id)) is None:
                continue  # asked for after the plan was made
            if fault := _fault(model, item, works, records):
                await self._end(model, fault)
                continue
            model.server = item.servers[0]
            record = records[model.server]
            if record.run_id == model.id and record.state in ("ready", "updating") and not model.is_ready:
                model.is_ready, model.used_at = True, time.monotonic()
                log.info("model loaded on demand", model=model.name, id=model.id, server=model.server)
                model.settled.set()

    async def _end(self, model: OnDemandModel, fault: str) -> None:
        del self._models[model.name]
        model.fault = fault
        model.settled.set()
        log.info("model on demand ended", model=model.name, id=model.id, server=model.server, reason=fault)
        await self._discard(model.id)


def _fault(
    model: OnDemandModel, item: Assigned, works: Sequence[Assigned], records: Mapping[str, ServiceRecord]
) -> str:
    """Why the model ends; empty while it does not."""
    if model.server is None:
        reason = unserved(item, works, records)
        return reason and f"The model {model.name} cannot be loaded now. {reason}"
    if not item.servers:
        users = [str(work) for work in works if model.server in work.servers]
        return f"The model {model.name} was unloaded, because {', '.join(users)} needs its rollout server."
    record = records.get(model.server)
    if record is None:
        return f"Rollout server {model.server}, which had the model {model.name}, is gone."
    if record.run_id == model.id and record.state == "failed":
        return f"The model {model.name} cannot be loaded. {record.details.get('fault', '')}".strip()
    if model.is_ready and model.unused_seconds > IDLE_SECONDS:
        return f"The model {model.name} was unloaded, because it was not used for {IDLE_SECONDS / 60:.0f} minutes."
    return ""
