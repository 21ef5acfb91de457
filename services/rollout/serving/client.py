"""vLLM's engine client as one served request sees it: bounded by the share, and aware of weight updates.

vLLM's serving classes call `generate` for each prompt, and read everything else (tokenizer, configuration, health) from
the engine itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from services.contracts.errors import ConfigurationError, ConflictError, TurnoutError, UnavailableError
from services.rollout import metrics
from services.rollout.serving.share import Share
from services.rollout.vllm.server import EngineServer

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams


class ServedClient:
    """The engine client of one request."""

    def __init__(
        self,
        server: EngineServer,
        share: Share,
        stop_token_ids: list[int],
        pinned: int | None,
        on_versions: Callable[[set[int]], None],
    ) -> None:
        """`pinned`: the only weight version that may answer, if any. `on_versions` is told the versions that sampled a
        response before its last output is given out."""
        self._server = server
        self._engine = server.require()
        self._run_id = server.run_id
        self._share = share
        self._stop_token_ids = stop_token_ids
        self._pinned = pinned
        self._on_versions = on_versions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **_: Any
    ) -> AsyncIterator[RequestOutput]:
        """Sample the responses of one prompt. Other options of vLLM, such as a priority, have no effect.

        Raises:
            GenerationError: vLLM's, caused by ConfigurationError (the prompt has tokens that the model lacks, which
                would end the engine), ConflictError (other weights than the pinned version were loaded meanwhile) or
                UnavailableError (the server left the run, or replaced its engine).
        """
        try:
            async for output in self._outputs(prompt, sampling_params):
                yield output
        except TurnoutError as error:
            raise _as_vllms(error) from error

    async def _outputs(self, prompt: Any, sampling_params: SamplingParams) -> AsyncIterator[RequestOutput]:
        self._check_tokens(prompt)
        sampling_params.update_from_generation_config({"eos_token_id": self._stop_token_ids})
        async with self._share.slots(sampling_params.n):
            while True:
                has_begun = is_withdrawn = False
                async for output in self._server.stream(prompt, sampling_params.clone()):
                    self._check_run()
                    is_withdrawn = any(one.finish_reason == "abort" for one in output.outputs)
                    if is_withdrawn:
                        break
                    self._note(output, is_first=not has_begun)
                    has_begun = True
                    yield output
                if not is_withdrawn:
                    return
                if has_begun:  # only one of several responses was withdrawn, and the others' beginnings are sent
                    raise UnavailableError("New weights were loaded while this request began.", remedy="Send it again.")

    def _check_tokens(self, prompt: Any) -> None:
        vocabulary_size = self._engine.vllm_config.model_config.get_vocab_size()
        largest = max(prompt.get("prompt_token_ids") or [0])
        if largest >= vocabulary_size:
            raise ConfigurationError(
                f"The prompt contains token {largest}, but the model's vocabulary has only {vocabulary_size} tokens.",
                remedy="Send text, or tokens of the model's own tokenizer.",
                field="prompt",
            )

    def _check_run(self) -> None:
        if self._server.engine is not self._engine or self._server.run_id != self._run_id:
            raise UnavailableError("The rollout server left the run.", remedy="Send the request again.")
        if self._pinned is not None and self._server.version != self._pinned:
            raise ConflictError(
                f"Version {self._server.version} was loaded before version {self._pinned} had answered.",
                remedy=f"Ask model {self._run_id} for the newest version, or a shorter answer.",
            )

    def _note(self, output: RequestOutput, *, is_first: bool) -> None:
        if is_first:
            metrics.SERVED_TOKENS.labels("prompt").inc(len(output.prompt_token_ids or ()))
        metrics.SERVED_TOKENS.labels("response").inc(sum(len(one.token_ids) for one in output.outputs))
        spans = [span for one in output.outputs for span in one.weight_versions or ()]
        if spans:
            self._on_versions({int(span.version) for span in spans})


def _as_vllms(error: TurnoutError) -> Exception:
    """The error as vLLM's classes expect it, which would log any other with a traceback."""
    from vllm.exceptions import GenerationError

    raised = GenerationError(str(error))
    raised.status_code = HTTPStatus(error.status)
    return raised
