"""Outputs of the engine that callers need not hear of at once.

In vLLM a request of which only the end is wanted also sends each token to the service's process, which spends more time
on these messages than on all else (docs/decisions, 255). They are joined and sent every `HOLD_SECONDS`, and before a
pause is complete, so that no token is counted as one of the next weight version. First tokens are sent at once, since
the service withdraws requests without one when weights change.
"""

from __future__ import annotations

import time

import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request

HOLD_SECONDS = 0.1
"""Longest time that tokens are held back. An engine whose steps are longer holds nothing."""


class HeldOutputs:
    """What each request's caller has not been told yet."""

    def __init__(self, requests: dict[str, Request]) -> None:
        """Args: requests: those that the engine has not ended, kept up to date by the caller."""
        self._requests = requests
        self._held: dict[str, EngineCoreOutput] = {}
        self._parts: dict[str, list[LogprobsLists]] = {}
        """The log-probabilities of held tokens, one part per step."""
        self._sent_at = time.monotonic()

    def __len__(self) -> int:
        return len(self._held)

    def sift(self, outputs: dict[int, EngineCoreOutputs], *, is_idle: bool) -> None:
        """Take what can wait from a step's outputs, and add what is due. A step in which nothing was sampled
        (`is_idle`) sends everything."""
        now = time.monotonic()
        is_due = is_idle or now - self._sent_at >= HOLD_SECONDS
        for client in list(outputs):
            found = outputs[client]
            found.outputs = [output for output in found.outputs if not self._hold(output, is_due)]
            if not (found.outputs or found.finished_requests or found.scheduler_stats):
                del outputs[client]
        if is_due:
            self._sent_at = now
            self._release(outputs)

    def forget_withdrawn(self) -> None:
        """Drop the outputs of requests that have ended without another one."""
        for name in self._held.keys() - self._requests.keys():
            self._joined(name)

    def _hold(self, output: EngineCoreOutput, is_due: bool) -> bool:
        """Hold an output back, or join it with what was held, to be sent."""
        name = output.request_id
        request, held = self._requests.get(name), self._held.get(name)
        can_wait = (
            not is_due and output.finish_reason is None and request is not None and wants_end_only(request, output)
        )
        if not can_wait and held is None:
            return False
        if output.new_logprobs is not None:
            self._parts.setdefault(name, []).append(output.new_logprobs)
        if not can_wait:
            before = self._joined(name)
            output.new_token_ids = before.new_token_ids + output.new_token_ids
            output.new_logprobs = before.new_logprobs
        elif held is None:
            self._held[name] = output
        else:
            held.new_token_ids += output.new_token_ids
        return can_wait

    def _joined(self, name: str) -> EngineCoreOutput:
        """A held output, no longer held."""
        output, parts = self._held.pop(name), self._parts.pop(name, None)
        if parts is not None:
            output.new_logprobs = LogprobsLists(
                *(np.concatenate(some) for some in zip(*(p[:3] for p in parts), strict=True))
            )
        return output

    def _release(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Send what is still held, of requests that are not part of this step."""
        for name in list(self._held):
            client = self._requests[name].client_index
            outputs.setdefault(client, EngineCoreOutputs()).outputs.append(self._joined(name))


def wants_end_only(request: Request, output: EngineCoreOutput) -> bool:
    """Whether the caller can do without this output until later; it does not end the request."""
    params = request.sampling_params
    return (
        params is not None
        and params.output_kind == RequestOutputKind.FINAL_ONLY
        and not params.stop  # found in the text, by the caller's process
        and request.num_output_tokens > len(output.new_token_ids)
        and output.new_prompt_logprobs_tensors is None
    )
