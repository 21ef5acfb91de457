"""Samples one group: from a task's prompt to G rollouts with behaviour log-probabilities and version spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from services.contracts.arrays import LogProbs, TokenIds
from services.contracts.errors import InfrastructureError
from services.contracts.messages import PromptTask, Rollout, Sampling, Thinking, VersionSpan
from services.contracts.model import ThinkingSection
from services.rollout.sampling.prompts import PromptRenderer
from services.rollout.sampling.responses import ResponseDecoder, ThinkingReader
from services.rollout.vllm.server import EngineServer
from services.runtime.logs import get_logger

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput
    from vllm.sampling_params import SamplingParams

log = get_logger(__name__)
PROMPT_END_TOKENS = 32
"""Tokens in which a marker at the end of the prompt is looked for."""
MAX_FAILURES = 2
"""Number of failures after which a rollout becomes an infrastructure fault."""


class GroupSampler:
    """Samples groups of one run's model."""

    def __init__(
        self,
        server: EngineServer,
        renderer: PromptRenderer,
        stop_token_ids: list[int],
        stop: Sequence[str] = (),
        thinking: ThinkingSection | None = None,
    ) -> None:
        """`stop_token_ids` and the texts `stop` end a response; `thinking` is the run's section `model.thinking`."""
        self._server = server
        self._renderer = renderer
        markers = () if thinking is None else (thinking.open, thinking.close)
        self._decoder = ResponseDecoder(renderer.tokenizer, stop_token_ids, markers)
        self._thinking = None if thinking is None else ThinkingReader(self._decoder, thinking.open, thinking.close)
        self._stop_token_ids, self._stop = stop_token_ids, stop

    async def sample(self, task: PromptTask) -> tuple[list[int], list[Rollout]]:
        """Prompt token ids and exactly `num_samples` rollouts.

        A prompt that cannot be rendered, settings that vLLM rejects, and a rollout whose generation failed
        `MAX_FAILURES` times do not raise, but give rollouts with status `infrastructure_fault` and the reason.
        """
        num_samples = task.sampling.num_samples
        try:
            prompt = self._renderer.render(task.question, task.max_prompt_tokens, is_teacher=task.is_teacher is True)
        except InfrastructureError as error:
            return [], [fault(str(error))] * num_samples
        rollouts: list[Rollout] = []
        num_failures = 0
        is_greedy = task.sampling.temperature == 0  # all siblings are equal, so sample one
        while len(rollouts) < num_samples:
            try:
                if task.sampling.seed is not msgspec.UNSET:
                    rollouts.clear()  # a part of the samples would be drawn with the seeds of others
                number = 1 if is_greedy else num_samples - len(rollouts)
                params = sampling_params(task.sampling, number, self._stop_token_ids, self._stop)
                outputs = await self._server.generate(prompt, params)
                found = [
                    self._rollout(output, prompt) for output in outputs if output.finish_reason in ("stop", "length")
                ]
                rollouts += found * num_samples if is_greedy else found
                failed = next((output for output in outputs if output.finish_reason == "error"), None)
                if failed is not None:
                    raise InfrastructureError("The engine ended a response with an error.")
            except InfrastructureError as error:
                num_failures += 1
                log.warning("generation failed", group_id=task.group_id, error=str(error), failures=num_failures)
                if num_failures >= MAX_FAILURES:
                    rollouts += [fault(str(error))] * (num_samples - len(rollouts))
        return prompt, rollouts

    def _rollout(self, output: CompletionOutput, prompt: list[int]) -> Rollout:
        token_ids = list(output.token_ids)
        logprobs = [min(0.0, float(value)) for value in output.logprobs.logprobs]
        spans = output.weight_versions
        if len(logprobs) != len(token_ids) or spans is None:
            raise InfrastructureError(
                f"vLLM returned {len(token_ids)} tokens, {len(logprobs)} log-probabilities and "
                f"{'no' if spans is None else len(spans)} version spans."
            )
        text = through(self._decoder.text(token_ids), output.stop_reason)
        return Rollout(
            status="ok",
            text=text,
            token_ids=TokenIds(token_ids),
            logprobs=LogProbs(logprobs),
            weight_versions=merge_spans(spans),
            finish_reason="stop" if output.finish_reason == "stop" else "length",
            thinking=msgspec.UNSET if self._thinking is None else self._read_thinking(token_ids, text, prompt),
        )

    def _read_thinking(self, token_ids: list[int], text: str, prompt: list[int]) -> Thinking:
        assert self._thinking is not None
        end = self._renderer.tokenizer.decode(prompt[-PROMPT_END_TOKENS:], skip_special_tokens=False)
        return self._thinking.read(token_ids, text, end)


def through(text: str, stop_reason: int | str | None) -> str:
    """`text` up to and including the stop string that ended it; whole if something else did. The last token may have
    characters after that string. It is trained on, but rewards must not read what the engine would not have seen."""
    if not isinstance(stop_reason, str) or (start := text.find(stop_reason)) < 0:
        return text
    return text[: start + len(stop_reason)]


def merge_spans(spans: list[Any]) -> list[VersionSpan]:
    """vLLM's spans as ours: numbers instead of names, without empty spans, adjacent spans of a version merged."""
    merged: list[VersionSpan] = []
    for span in spans:
        version = int(span.version)
        if span.end <= span.start:
            continue
        if merged and merged[-1].version == version:
            merged[-1] = VersionSpan(version, merged[-1].start, span.end)
        else:
            merged.append(VersionSpan(version, span.start, span.end))
    return merged


def fault(reason: str) -> Rollout:
    return Rollout(status="infrastructure_fault", fault=reason)


def sampling_params(
    sampling: Sampling, num_samples: int, stop_token_ids: list[int], stop: Sequence[str] = ()
) -> SamplingParams:
    """vLLM's parameters: only final outputs, the sampled token's log-probability, and no text, which we decode, unless
    vLLM must look for stop strings in it.

    Raises:
        InfrastructureError: vLLM rejects the values.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    try:
        return SamplingParams(
            n=num_samples,
            seed=None if sampling.seed is msgspec.UNSET else sampling.seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            **sampling.extras,
            max_tokens=sampling.max_response_tokens,
            stop_token_ids=stop_token_ids,
            logprobs=0,
            flat_logprobs=True,
            stop=list(stop),
            detokenize=bool(stop),
            skip_special_tokens=False,
            include_stop_str_in_output=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    except ValueError as error:
        raise InfrastructureError(f"vLLM rejects the sampling settings: {error}.") from error
