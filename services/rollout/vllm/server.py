"""The engine: sampling from it, and its weight updates, over HTTP from the API or by this service when it joins late.

Every request carries the engine's weight epoch as its cache salt. The epoch moves when a weight update starts, so no
request that begins under new weights can meet cache blocks of older ones. Whoever waits for an engine is set free when
it is ended, since its calls may never return.

    serving --pause--> paused --start--> open --update--> loaded --finish--> paused --resume--> serving

`load` walks all of them and verifies before, while sampling continues. Else the verification is a part of `update`.

Any error in start, update or finish leads to `failed`: the server samples nothing until a full update has succeeded.
If the error may have left the model half-written, the engine is rebuilt first.

Requests that had not sampled a token when an update starts are taken back and submitted again under the new epoch.
Requests in mid-response keep their KV cache, or have it recomputed with the new weights if the run
(`rollout.kv_cache_on_update`) or the pause asks for that; their tokens say which version sampled them.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

from services.contracts.errors import ConflictError, InfrastructureError, UnavailableError
from services.rollout.environment import REFUSED
from services.rollout.vllm.engine import final_outputs, pause
from services.rollout.weights.examine import ExaminedWeights, WeightsRefusedError, WeightUpdateError, examined
from services.rollout.weights.fetch import FetchedWeights
from services.rollout.weights.shapes import ModelForm
from services.runtime.logs import get_logger

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

log = get_logger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
Step = Coroutine[Any, Any, None]
Phase = Literal["absent", "serving", "paused", "open", "loaded", "failed"]


async def _hold(engine: AsyncLLM) -> None:
    await pause(engine, "keep", clear_cache=False)
    await engine.update_weight_version("0")


def update_step(
    step: Callable[Concatenate[EngineServer, P], Step],
) -> Callable[Concatenate[EngineServer, P], Step]:
    """A step of an update: `UnavailableError` without an engine, or where it is ended meanwhile."""

    @functools.wraps(step)
    async def given_up_with_engine(self: EngineServer, /, *args: P.args, **kwargs: P.kwargs) -> None:
        self.require()
        await self.while_attached(step(self, *args, **kwargs))

    return given_up_with_engine


class EngineServer:
    """One engine at a time, with its update phases. All methods run on the service's event loop."""

    def __init__(self, folders: Sequence[Path] = (Path("/"),), fetched: FetchedWeights | None = None) -> None:
        """`folders`: where published weights may be. `fetched`: where those that are fetched are put."""
        self.engine: AsyncLLM | None = None
        self.run_id: str | None = None
        self.phase: Phase = "absent"
        self.version: int | None = None
        """Version of the weights, verified; None before the first is known."""
        self.checksum: str | None = None
        """Checksum of the verified weight folder; None for the model as it came."""
        self.fault = ""
        """Why the server is in phase `failed`."""
        self.must_rebuild = False
        """The model may be half-written: only a new engine helps."""
        self.changed_at = time.monotonic()
        """When the phase changed last, by the monotonic clock."""
        self.num_calls = 0
        """Steps of an update that the engine has not answered yet."""
        self._serving = asyncio.Event()
        self._gone: asyncio.Future[Literal["died", "ended"]] = asyncio.get_running_loop().create_future()
        self._epoch = 0
        self.num_sampling = 0
        """Calls of `generate` that the engine has not answered yet."""
        self._form = ModelForm("", "")
        self._requests = itertools.count()
        self._folders = folders
        self._fetched = fetched
        self.recomputes_kv_cache = False
        """Whether requests in mid-response get a new KV cache at each update, by the run's setting."""
        self.is_loading = False  # all phases of an update, by `load`
        self._offered: ExaminedWeights | None = None
        self._prepared: ExaminedWeights | None = None
        self._is_examining = False

    async def attach(self, engine: AsyncLLM, run_id: str) -> None:
        """Take an engine that holds its model's own weights, version 0 of the run. It is paused until weights are.

        Raises `UnavailableError` where it hung and was ended.
        """
        if engine is not self.engine:
            self._gone = asyncio.get_running_loop().create_future()
        self.engine, self.run_id = engine, run_id
        await self.while_attached(_hold(engine))
        model = engine.vllm_config.model_config
        self._form = ModelForm(model.model, str(model.dtype).removeprefix("torch."), model.trust_remote_code)
        self.version, self.checksum = 0, None
        self.fault, self.must_rebuild = "", False
        self._epoch += 1
        self._move("paused")

    def detach(self) -> AsyncLLM | None:
        """Give the engine away (to be ended). Whoever waits for its outputs submits again to the next one."""
        if not self._gone.done():
            self._gone.set_result("died" if self.is_dead else "ended")
        engine, self.engine = self.engine, None
        self.version = self.checksum = None
        self._move("absent")
        return engine

    @property
    def is_dead(self) -> bool:
        """An engine is attached and its process has died."""
        return self.engine is not None and bool(self.engine.errored)

    def count_unfinished(self) -> int:
        """Tokens sampled so far of responses that have not ended; as long as it moves, the engine works."""
        if self.engine is None:
            return 0
        states = self.engine.output_processor.request_states.values()
        return sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer is not None)

    async def until_serving(self, seconds: float) -> None:
        """Wait until requests are sampled, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._serving.wait()
        except TimeoutError:
            pass

    async def generate(self, prompt_token_ids: list[int], params: SamplingParams) -> list[CompletionOutput]:
        """Sample `params.n` responses.

        Submit again those that are missing or have finish reason `abort`: an update took them back, or the engine was
        exchanged.

        Raises:
            InfrastructureError: the engine failed on this request, or died.
        """
        from vllm.inputs.engine import tokens_input

        await self._serving.wait()
        engine, gone = self.require(), self._gone
        prompt = tokens_input(prompt_token_ids, cache_salt=str(self._epoch))
        request: asyncio.Future[Any] = asyncio.create_task(
            final_outputs(engine, prompt, params, f"r{next(self._requests)}")
        )
        try:
            self.num_sampling += 1
            waited: set[asyncio.Future[Any]] = {request, gone}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.num_sampling -= 1
            if not request.done():
                request.cancel()
        if not request.done():
            if gone.result() == "died":
                raise InfrastructureError("The engine died.")
            return []
        error = request.exception()
        if error is None:
            outputs: list[CompletionOutput] = request.result()
            return outputs
        if engine is self.engine and self.is_dead:
            self.fail("the engine has died", half_written=True)
        raise InfrastructureError(f"The engine failed: {type(error).__name__}: {error}") from error

    async def while_attached(self, call: Coroutine[Any, Any, T]) -> T:
        """What the engine answers to a call.

        Raises:
            UnavailableError: the engine was ended meanwhile.
        """
        task = asyncio.create_task(call)
        waited: set[asyncio.Future[Any]] = {task, self._gone}
        self.num_calls += 1
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.num_calls -= 1
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if task.cancelled():
            raise UnavailableError("The engine was ended meanwhile.", remedy="Try again when a new one is ready.")
        return task.result()

    def fail(self, reason: str, *, half_written: bool) -> None:
        """Take the server out of use."""
        self.fault = reason
        self.must_rebuild = self.must_rebuild or half_written
        log.error("engine out of use", reason=reason, rebuild=self.must_rebuild)
        self._move("failed")

    def _move(self, phase: Phase) -> None:
        self.phase = phase
        self.changed_at = time.monotonic()
        if phase == "serving":
            self._serving.set()
        else:
            self._serving.clear()

    def require(self) -> AsyncLLM:
        if self.engine is None:
            raise UnavailableError(
                "This rollout server has no engine: no run is assigned, or the engine is starting.",
                remedy="Wait until its heartbeat says ready.",
            )
        return self.engine

    @property
    def is_busy(self) -> bool:
        """A step of an update is under way, by whomever."""
        return self.is_loading or self.num_calls > 0

    @property
    def is_waited_for(self) -> bool:
        """Something waits for the engine itself to do something."""
        return (self.phase == "serving" and self.num_sampling > 0) or (self.num_calls > 0 and not self._is_examining)

    @update_step
    async def pause_generation(self, *, mode: str = "keep", clear_cache: bool = False) -> None:
        """Stop decoding. Requests in flight are kept (mode `keep`), with their KV cache unless it is to be cleared."""
        engine = self.require()
        if self.phase in ("open", "loaded"):
            raise ConflictError(f"A weight update is in phase {self.phase}; finish it before you pause again.")
        self._serving.clear()
        if self.phase == "serving":
            self._move("paused")
        await pause(engine, mode, clear_cache=clear_cache or self.recomputes_kv_cache)

    @update_step
    async def start_weight_update(self) -> None:
        """Begin an update. The server must be paused. Takes back requests that have sampled nothing yet."""
        engine = self.require()
        if self.must_rebuild:
            raise ConflictError(f"The engine is being rebuilt after: {self.fault}")
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

    @update_step
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
                info = update_info | {"path": offered.path, "marks": offered.marks}
            except WeightUpdateError as error:
                info = {"path": "", "checksum": "", "refusal": str(error)}  # vLLM ends its session when this fails
            await engine.update_weights(WeightTransferUpdateRequest(update_info=info))
        self._offered = offered
        self._move("loaded")

    @update_step
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

    @update_step
    async def resume_generation(self) -> None:
        """Decode on. Refused while an update is open or has failed."""
        engine = self.require()
        if self.phase in ("open", "loaded"):
            raise ConflictError("A weight update is open; finish it first.")
        if self.phase == "failed":
            raise ConflictError(f"The last weight update failed ({self.fault}); a full update must succeed first.")
        await engine.resume_generation()
        self._move("serving")

    @update_step
    async def prepare(self, update_info: dict[str, Any], version: int) -> None:
        """Look at weights that are about to be loaded, in a thread, while sampling continues.

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
        """All phases at once: for the API's push, and for a server that catches up on its own.

        Verified before sampling stops; the bytes of a fast transport (`transfer`) after. Returns the seconds of each
        phase.

        Raises:
            WeightUpdateError: names the phase; `WeightsRefusedError` if nothing was touched and sampling continues.
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

    async def _examine(self, update_info: Any, version: int | None = None) -> ExaminedWeights:
        self._is_examining = True
        try:
            return await asyncio.to_thread(
                examined, update_info, self.run_id, self._form, self._folders, version, self._fetched
            )
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
