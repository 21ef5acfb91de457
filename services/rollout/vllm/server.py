"""The engine: samples from it and updates its weights, pushed by the API over HTTP or loaded by this service itself.

Every request carries the engine's weight epoch as its cache salt. The epoch changes when a weight update starts, so a
request that begins with the updated weights cannot use cache blocks of older ones. Ending an engine releases everything
that waits for it, since its calls may never return.

    serving --pause--> paused --start--> open --update--> loaded --finish--> paused --resume--> serving
    serving --sleep--> asleep --wake---> paused (as above, with new weights; resume wakes the KV cache)

`load` runs all phases, and verifies the weights first, while sampling continues. In a pushed update the verification is
part of `update`.

Any error in start, update or finish leads to `failed`: the server does not sample until a full update has succeeded. If
the error may have left the model half-written, the engine is rebuilt first.

Requests that have not sampled a token when an update starts are withdrawn and submitted again in the next epoch. Other
requests keep their KV cache, or have it recomputed with the updated weights if the run (`rollout.kv_cache_on_update`)
or the pause asks for that; their version spans say which version sampled which tokens.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

from services.contracts.errors import ConflictError, InfrastructureError, UnavailableError
from services.rollout.environment import REFUSED, REFUSED_ELSEWHERE
from services.rollout.vllm.engine import final_outputs, pause
from services.rollout.weights.examine import ExaminedWeights, WeightsRefusedError, WeightUpdateError, examined
from services.rollout.weights.fetch import FetchedWeights
from services.rollout.weights.shapes import ModelForm
from services.runtime.logs import get_logger

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

log = get_logger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
Step = Coroutine[Any, Any, None]
Phase = Literal["absent", "serving", "paused", "open", "loaded", "failed", "asleep"]
DISCARD = 2
"""vLLM's sleep level that keeps no copy of the weights, since a published version is loaded at each waking."""


async def _hold(engine: AsyncLLM) -> None:
    await pause(engine, "keep", clear_cache=False)
    await engine.update_weight_version("0")


def check_answers(answers: Sequence[str]) -> None:
    """Raise `WeightUpdateError` unless all workers have loaded the weights, each with the answer "". The error is a
    refusal only if all of them refuse, since otherwise one has changed its model."""
    if not any(answers):
        return
    if others := [answer for answer in answers if REFUSED not in answer]:
        raise WeightUpdateError(max(others) or "only some workers of the engine have loaded the weights.")
    raise WeightUpdateError(min(answers, key=lambda answer: answer == REFUSED_ELSEWHERE))


def update_step(
    step: Callable[Concatenate[EngineServer, P], Step],
) -> Callable[Concatenate[EngineServer, P], Step]:
    """Decorates a step of an update, to raise `UnavailableError` if there is no engine or it is ended meanwhile."""

    @functools.wraps(step)
    async def given_up_with_engine(self: EngineServer, /, *args: P.args, **kwargs: P.kwargs) -> None:
        self.require()
        await self.while_attached(step(self, *args, **kwargs))

    return given_up_with_engine


ASLEEP = "The engine sleeps while the learner uses the GPU."


class EngineServer:
    """One engine at a time, with its update phases. All methods run on the service's event loop."""

    def __init__(self, folders: Sequence[Path] = (Path("/"),), fetched: FetchedWeights | None = None) -> None:
        """`folders` are those that published weights may be in; `fetched` stores weights that are fetched."""
        self.engine: AsyncLLM | None = None
        self.run_id: str | None = None
        self.phase: Phase = "absent"
        self.version: int | None = None
        """Verified version of the weights; None without an engine."""
        self.checksum: str | None = None
        """Checksum of the verified weight folder; None for the model's own weights."""
        self.fault = ""
        """Why the server is in phase `failed`."""
        self.must_rebuild = False
        """Whether the model may be half-written, so that only another engine helps."""
        self.changed_at = time.monotonic()
        """Time of the last change of phase, on the monotonic clock."""
        self.num_calls = 0
        """Number of update steps that the engine has not finished yet."""
        self._serving = asyncio.Event()
        self._gone: asyncio.Future[Literal["died", "ended"]] = asyncio.get_running_loop().create_future()
        self._epoch = 0
        self.num_sampling = 0
        """Number of calls of `generate` and `stream` that wait for the engine."""
        self._form = ModelForm("", "")
        self._requests = itertools.count()
        self._folders = folders
        self._fetched = fetched
        self.recomputes_kv_cache = False
        """Whether the run wants the KV cache of unfinished responses recomputed at each update."""
        self.chat_template_kwargs: dict[str, Any] = {}
        """The run's arguments of its chat template, for served requests."""
        self.is_loading = False
        """Whether `load` is running."""
        self._offered: ExaminedWeights | None = None
        self._prepared: ExaminedWeights | None = None
        self._is_examining = False
        self._lacks_kv_cache = False
        """Whether the engine has its weights back, but not yet the memory of its KV cache."""

    async def attach(self, engine: AsyncLLM, run_id: str) -> None:
        """Take over an engine that has its model's own weights, version 0 of the run, and pause it.

        Raises:
            UnavailableError: the engine hung and was ended.
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
        self._lacks_kv_cache = False
        self._move("paused")

    def detach(self) -> AsyncLLM | None:
        """Return the engine, to be ended. Callers that wait for its outputs submit again to the next engine."""
        if not self._gone.done():
            self._gone.set_result("died" if self.is_dead else "ended")
        engine, self.engine = self.engine, None
        self.version = self.checksum = None
        self._move("absent")
        return engine

    @property
    def is_dead(self) -> bool:
        """Whether an engine is attached whose process has died."""
        return self.engine is not None and bool(self.engine.errored)

    def count_unfinished(self) -> int:
        """Number of tokens sampled so far in unfinished responses; while it changes, the engine is working."""
        if self.engine is None:
            return 0
        states = self.engine.output_processor.request_states.values()
        return sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer is not None)

    async def until_serving(self, seconds: float) -> None:
        """Wait up to `seconds` for the server to sample requests."""
        try:
            async with asyncio.timeout(seconds):
                await self._serving.wait()
        except TimeoutError:
            pass

    async def generate(self, prompt_token_ids: list[int], params: SamplingParams) -> list[CompletionOutput]:
        """Sample `params.n` responses.

        The caller must submit responses again that are missing or have finish reason `abort`: an update withdrew them,
        or the engine was replaced.

        Raises:
            InfrastructureError: the engine failed for this request, or died.
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
            self.fail("the engine died", half_written=True)
        raise InfrastructureError(f"The engine failed: {type(error).__name__}: {error}") from error

    async def stream(self, prompt: Any, params: SamplingParams) -> AsyncIterator[RequestOutput]:
        """The outputs of one request as they arrive, of the kind that `params` asks for. `prompt` has the form of
        vLLM's `tokens_input`.

        The caller must submit the request again if an output has finish reason `abort`.

        Raises:
            UnavailableError: the engine was ended. Other errors are vLLM's.
        """
        await self._serving.wait()
        engine, gone = self.require(), self._gone
        prompt = {**prompt, "cache_salt": str(self._epoch)}
        outputs = engine.generate(prompt, params, f"s{next(self._requests)}")
        try:
            while (output := await self._next_output(outputs, gone)) is not None:
                yield output
        finally:
            await outputs.aclose()

    async def _next_output(
        self, outputs: AsyncGenerator[RequestOutput, None], gone: asyncio.Future[Any]
    ) -> RequestOutput | None:
        """The next output; None after the last."""

        async def advance() -> RequestOutput | None:
            return await anext(outputs, None)

        task = asyncio.create_task(advance())
        waited: set[asyncio.Future[Any]] = {task, gone}
        self.num_sampling += 1
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.num_sampling -= 1
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if task.cancelled():
            raise UnavailableError("The engine was stopped during the request.", remedy="Send it again.")
        return task.result()

    async def while_attached(self, call: Coroutine[Any, Any, T]) -> T:
        """The result of a call to the engine.

        Raises:
            UnavailableError: the engine was ended during the call.
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
            raise UnavailableError("The engine was stopped during the call.", remedy="Try again once it is restarted.")
        return task.result()

    def fail(self, reason: str, *, half_written: bool) -> None:
        """Stop sampling until a full update succeeds, on another engine if the model may be half-written."""
        self.fault = reason
        self.must_rebuild = self.must_rebuild or half_written
        log.error("engine failed", reason=reason, rebuild=self.must_rebuild)
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
                remedy="Wait until its state is ready.",
            )
        return self.engine

    @property
    def is_busy(self) -> bool:
        """Whether a step of an update, pushed or our own, is in progress."""
        return self.is_loading or self.num_calls > 0

    @property
    def is_waited_for(self) -> bool:
        """Whether something waits for the engine to act."""
        return (self.phase == "serving" and self.num_sampling > 0) or (self.num_calls > 0 and not self._is_examining)

    @update_step
    async def pause_generation(self, *, mode: str = "keep", clear_cache: bool = False) -> None:
        """Stop decoding. Mode `keep` keeps requests in flight, with their KV cache unless that must be cleared."""
        engine = self.require()
        if self.phase in ("open", "loaded"):
            raise ConflictError(f"A weight update is in phase {self.phase}. Finish it before pausing again.")
        if self.phase == "asleep":
            raise ConflictError(ASLEEP)
        self._serving.clear()
        if self.phase == "serving":
            self._move("paused")
        await pause(engine, mode, clear_cache=clear_cache or self.recomputes_kv_cache)

    @update_step
    async def sleep(self) -> None:
        """Free the GPU: weights and KV cache are discarded. Withdraws all requests, and their callers submit them
        again. Only `load` wakes the engine."""
        engine = self.require()
        if self.phase not in ("serving", "paused"):
            raise ConflictError(f"The engine is {self.phase}, so it cannot sleep.")
        self._move("paused")  # nothing is submitted from here on
        with self._failing("sleep"):
            await engine.sleep(level=DISCARD, mode="abort")
        self._move("asleep")

    @update_step
    async def wake(self) -> None:
        """Take memory for the weights back. The KV cache follows when sampling resumes, so that an update has room."""
        engine = self.require()
        with self._failing("wake"):
            await engine.wake_up(["weights"])
        self._lacks_kv_cache = True
        self._move("paused")

    @update_step
    async def start_weight_update(self) -> None:
        """Begin an update. The server must be paused. Withdraws requests that have not sampled a token."""
        engine = self.require()
        if self.must_rebuild:
            raise ConflictError(f"The engine is being rebuilt after a fault: {self.fault}")
        if self.phase not in ("paused", "failed") or not await engine.is_paused():
            raise ConflictError("Generation is not paused. Pause it before a weight update.")
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
        """Load one verified version. `update_info` is {"path", "checksum"}, plus "transfer" for a fast transport."""
        engine = self.require()
        if self.phase != "open":
            raise ConflictError("No weight update is open. Start one before loading weights.")
        with self._failing("update"):
            offered = self._prepared
            try:
                if offered is None:
                    offered = await self._examine(update_info)
                info = update_info | {"path": offered.path, "marks": offered.marks}
            except WeightUpdateError as error:
                info = {"path": "", "checksum": "", "refusal": str(error)}  # vLLM must see a failure to end its session
            answers = await engine.collective_rpc("try_update_weights", args=(info,))
            check_answers(answers)
        self._offered = offered
        self._move("loaded")

    @update_step
    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Finish the update. `weight_version` must equal the version in the folder's manifest."""
        engine = self.require()
        if self.phase != "loaded" or self._offered is None:
            raise ConflictError("No weights are loaded. Load weights before finishing the update.")
        version, checksum = self._offered.version, self._offered.checksum
        with self._failing("finish"):
            await engine.finish_weight_update(str(version))
            if weight_version is not None and weight_version != str(version):
                raise WeightUpdateError(f"The folder contains version {version}, not {weight_version}.")
        self.version, self.checksum, self.fault = version, checksum, ""
        self._move("paused")

    @update_step
    async def resume_generation(self) -> None:
        """Resume decoding. Raises `ConflictError` while an update is open or after one has failed."""
        engine = self.require()
        if self.phase in ("open", "loaded"):
            raise ConflictError("A weight update is open. Finish it before resuming.")
        if self.phase == "failed":
            raise ConflictError(f"The last weight update failed ({self.fault}). Run a full update before resuming.")
        if self.phase == "asleep":
            raise ConflictError(ASLEEP)
        if self._lacks_kv_cache:
            with self._failing("wake"):
                await engine.wake_up(["kv_cache"])
            self._lacks_kv_cache = False
        await engine.resume_generation()
        self._move("serving")

    @update_step
    async def prepare(self, update_info: dict[str, Any], version: int) -> None:
        """Verify weights before they are loaded, in a thread, while sampling continues.

        Raises:
            WeightsRefusedError: they are not as announced, and the server continues sampling.
            WeightUpdateError: they are not as announced, and the server was not sampling.
        """
        try:
            self._prepared = await self._examine(update_info, version)
        except WeightUpdateError as error:
            log.error("weights refused", reason=str(error), phase=self.phase)
            if self.phase == "serving":
                raise WeightsRefusedError(str(error)) from error
            raise

    async def load(self, version: int, path: str, checksum: str, transfer: Any = None) -> dict[str, float]:
        """Run all phases of an update: for the API's push, and for a server that catches up itself. A sleeping engine
        is woken instead of paused.

        The weights are verified before sampling stops, except the bytes of a fast transport (`transfer`), which are
        verified on arrival. Returns the seconds of each phase.

        Raises:
            WeightUpdateError: names the phase; `WeightsRefusedError` if nothing was changed and sampling continues.
            ConflictError: another update is in progress.
            UnavailableError: the engine was ended during the update.
        """
        if self.is_busy or self.phase in ("open", "loaded"):
            raise ConflictError("A weight update is in progress.", remedy="Try again when it has finished.")
        info = {"path": path, "checksum": checksum} | ({} if transfer is None else {"transfer": transfer})
        still: tuple[str, Callable[[], Step]] = ("pause", self.pause_generation)
        steps: tuple[tuple[str, Callable[[], Step]], ...] = (
            ("prepare", lambda: self.prepare(info, version)),
            ("wake", self.wake) if self.phase == "asleep" else still,
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
        """Turn any error in an update phase into phase `failed` and a `WeightUpdateError`."""
        engine = self.engine
        try:
            yield
        except BaseException as error:  # a cancelled update may have left the model half-written too
            intact = step == "update" and REFUSED in str(error)
            reason = str(error) or type(error).__name__
            if self.engine is engine:  # otherwise it was ended, and its successor has no fault
                self.fail(reason, half_written=not intact)
            if isinstance(error, Exception):
                raise WeightUpdateError(f"Phase {step} of the weight update failed: {reason}") from error
            raise
