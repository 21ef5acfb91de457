"""The engine at hand: present or not, serving or not, with which verified weights; and sampling from it.

Every request carries the engine's weight epoch as its cache salt. The epoch moves when a weight update starts, so no
request that begins under new weights can meet cache blocks of older ones. Whoever waits for an engine is set free when
it is ended, which may leave its calls waiting for ever.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from services.contracts.errors import InfrastructureError, UnavailableError
from services.rollout.vllm.engine import final_outputs, pause
from services.rollout.weights.shapes import ModelForm
from services.runtime.logs import get_logger

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

log = get_logger(__name__)
T = TypeVar("T")
Phase = Literal["absent", "serving", "paused", "open", "loaded", "failed"]


async def _hold(engine: AsyncLLM) -> None:
    await pause(engine, "keep", clear_cache=False)
    await engine.update_weight_version("0")


class EngineHolder:
    """One engine at a time. All methods run on the service's event loop."""

    def __init__(self) -> None:
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
