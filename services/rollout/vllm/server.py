"""Weight updates of the engine at hand, over HTTP from the API or by this service itself when it joins late.

    serving --pause--> paused --start--> open --update--> loaded --finish--> paused --resume--> serving

`load` walks all of them and verifies before, while sampling goes on. Else the verification is a part of `update`.

Any error in start, update or finish leads to `failed`: the server samples nothing until a full update has succeeded.
Where the error may have left the model half-written the engine is built anew first.

The weight epoch moves when an update starts. Requests that had not sampled a token by then are taken back and submitted
again under the new epoch. Requests in mid-response keep their KV cache, or have it recomputed with the new weights
where the run (`rollout.kv_cache_on_update`) or the pause asks for that; their tokens say which version sampled them.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from services.contracts.errors import ConflictError
from services.rollout.environment import REFUSED
from services.rollout.vllm.engine import pause
from services.rollout.vllm.holder import EngineHolder
from services.rollout.weights.examine import Offer, WeightsRefusedError, WeightUpdateError, examined
from services.runtime.logs import get_logger

log = get_logger(__name__)
P = ParamSpec("P")
Step = Coroutine[Any, Any, None]


def while_attached(
    step: Callable[Concatenate[EngineServer, P], Step],
) -> Callable[Concatenate[EngineServer, P], Step]:
    """A step of an update: `UnavailableError` without an engine, or where it is ended meanwhile."""

    @functools.wraps(step)
    async def given_up_with_engine(self: EngineServer, /, *args: P.args, **kwargs: P.kwargs) -> None:
        self.require()
        await self.while_attached(step(self, *args, **kwargs))

    return given_up_with_engine


class EngineServer(EngineHolder):
    """The engine with its update phases."""

    def __init__(self, folders: Sequence[Path] = (Path("/"),)) -> None:
        """`folders`: where published weights may lie."""
        super().__init__()
        self._folders = folders
        self.recomputes_kv_cache = False
        """Whether requests in mid-response get a new KV cache at each update, by the run's setting."""
        self.is_loading = False  # all phases of an update, by `load`
        self._offered: Offer | None = None
        self._prepared: Offer | None = None
        self._is_examining = False

    @property
    def is_busy(self) -> bool:
        """A step of an update is under way, by whomever."""
        return self.is_loading or self.num_calls > 0

    @property
    def is_waited_for(self) -> bool:
        """Somebody waits for the engine itself to do something."""
        return (self.phase == "serving" and self.num_sampling > 0) or (self.num_calls > 0 and not self._is_examining)

    @while_attached
    async def pause_generation(self, *, mode: str = "keep", clear_cache: bool = False) -> None:
        """Stop decoding. Requests in flight are kept (mode `keep`), with their KV cache unless it is to be cleared."""
        engine = self.require()
        if self.phase in ("open", "loaded"):
            raise ConflictError(f"A weight update is in phase {self.phase}; finish it before you pause again.")
        self._serving.clear()
        if self.phase == "serving":
            self._move("paused")
        await pause(engine, mode, clear_cache=clear_cache or self.recomputes_kv_cache)

    @while_attached
    async def start_weight_update(self) -> None:
        """Begin an update. The server must be paused. Takes back requests that have sampled nothing yet."""
        engine = self.require()
        if self.must_rebuild:
            raise ConflictError(f"The engine is being built anew after: {self.fault}")
        if self.phase not in ("paused", "failed") or not await engine.is_paused():
            raise ConflictError("Pause generation before a weight update.")
        self._offered = None
        self._epoch += 1
        states = engine.output_processor.request_states
        unstarted = [request_id for request_id, state in states.items() if state.is_prefilling]
        with self._failing("start"):
            if unstarted:
                await engine.abort(unstarted, internal=True)
            await engine.start_weight_update()
        self._move("open")

    @while_attached
    async def update_weights(self, update_info: Any) -> None:
        """Load one verified version; `update_info` is {"path", "checksum"}, by a fast transport also {"transfer"}."""
        engine = self.require()
        if self.phase != "open":
            raise ConflictError("Start a weight update first.")
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        with self._failing("update"):
            offered = self._prepared
            try:
                if offered is None:
                    offered = await self._examine(update_info)
                info = update_info | {"marks": offered.marks}
            except WeightUpdateError as error:
                info = {"path": "", "checksum": "", "refusal": str(error)}  # vLLM ends its session when this fails
            await engine.update_weights(WeightTransferUpdateRequest(update_info=info))
        self._offered = offered
        self._move("loaded")

    @while_attached
    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update. `weight_version` must be the version that the folder's manifest names."""
        engine = self.require()
        if self.phase != "loaded" or self._offered is None:
            raise ConflictError("Load weights before you finish the update.")
        version, checksum = self._offered.version, self._offered.checksum
        with self._failing("finish"):
            await engine.finish_weight_update(str(version))
            if weight_version is not None and weight_version != str(version):
                raise WeightUpdateError(f"The folder holds version {version}, the update says {weight_version}.")
        self.version, self.checksum, self.fault = version, checksum, ""
        self._move("paused")

    @while_attached
    async def resume_generation(self) -> None:
        """Decode on. Refused while an update is open or has failed."""
        engine = self.require()
        if self.phase in ("open", "loaded"):
            raise ConflictError("A weight update is open; finish it first.")
        if self.phase == "failed":
            raise ConflictError(f"The last weight update failed ({self.fault}); a full update must succeed first.")
        await engine.resume_generation()
        self._move("serving")

    @while_attached
    async def prepare(self, update_info: dict[str, Any], version: int) -> None:
        """Look at weights that are about to be loaded, in a thread, while sampling goes on.

        Raises `WeightUpdateError` where they are not as promised; `WeightsRefusedError` if this server samples on.
        """
        try:
            self._prepared = await self._examine(update_info, version)
        except WeightUpdateError as error:
            log.error("weights refused", reason=str(error), phase=self.phase)
            if self.phase == "serving":
                raise WeightsRefusedError(str(error)) from error
            raise

    async def load(self, version: int, path: str, checksum: str, transfer: Any = None) -> dict[str, float]:
        """All phases at once: for the API's push, and for a server that catches up by itself.

        Verified before sampling stops; the bytes of a fast transport (`transfer`) after. Returns the seconds of each
        phase.

        Raises:
            WeightUpdateError: names the phase; `WeightsRefusedError` where nothing was touched and sampling goes on.
            ConflictError: another update is under way.
            UnavailableError: the engine was ended meanwhile.
        """
        if self.is_busy or self.phase in ("open", "loaded"):
            raise ConflictError("A weight update is under way.", remedy="Try again when it has ended.")
        info = {"path": path, "checksum": checksum} | ({} if transfer is None else {"transfer": transfer})
        steps: tuple[tuple[str, Callable[[], Step]], ...] = (
            ("prepare", lambda: self.prepare(info, version)),
            ("pause", self.pause_generation),
            ("start", self.start_weight_update),
            ("update", lambda: self.update_weights(info)),
            ("finish", lambda: self.finish_weight_update(str(version))),
            ("resume", self.resume_generation),
        )
        seconds = {}
        self.is_loading = True
        try:
            for name, step in steps:
                started = time.monotonic()
                await step()
                seconds[name] = time.monotonic() - started
        finally:
            self.is_loading, self._prepared = False, None
        return seconds

    async def _examine(self, update_info: Any, version: int | None = None) -> Offer:
        self._is_examining = True
        try:
            return await asyncio.to_thread(examined, update_info, self.run_id, self._form, self._folders, version)
        finally:
            self._is_examining = False

    @contextmanager
    def _failing(self, step: str) -> Iterator[None]:
        """Turns any error of one update phase into phase `failed` and a `WeightUpdateError`."""
        engine = self.engine
        try:
            yield
        except BaseException as error:  # a cancelled update may have left the model half-written too
            intact = step == "update" and REFUSED in str(error)
            reason = str(error) or type(error).__name__
            if self.engine is engine:  # else it was ended, and what follows it has no fault
                self.fail(reason, half_written=not intact)
            if isinstance(error, Exception):
                raise WeightUpdateError(f"Phase {step} of the weight update failed: {reason}") from error
            raise
