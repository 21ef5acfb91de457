"""vLLM's scheduler with a short way for the step that sampling mostly consists of: every running request decodes one
token, and nothing else can start. Tokens of which the caller needs no news are held back (`held_outputs`).

vLLM's own way considers prefills, speculation, encoders and transfers for each request in each step, in Python. With a
small model on a CPU that takes longer than the model (docs/decisions has the measurements, 254). The short way gives
the engine the same instructions and callers the same outputs; a step with anything else in it takes vLLM's way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.sched.utils import remove_all
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from services.rollout.vllm.held_outputs import HeldOutputs


class DecodingScheduler(Scheduler):
    """For one process without asynchronous scheduling, as on a CPU."""

    running: list[Request]
    finished_req_ids: set[str]
    reset_preempted_req_ids: set[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        managers = self.kv_cache_manager.coordinator.single_type_managers
        self._slots = managers[0].block_size
        """Tokens in a block of the KV cache."""
        self._budget = min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens)
        self._is_plain = (
            [type(manager) for manager in managers] == [FullAttentionManager]
            and self.vllm_config.speculative_config is None
            and not any((self.connector, self.ec_connector, self.aux_output_connector, self.lora_config))
            and not any((self.use_pp, self.use_v2_model_runner, self.defer_block_free, self.is_encoder_decoder))
            and not any((self.return_sampling_mask, self.needs_kv_cache_zeroing, self.log_stats))
            and self.finished_req_ids_dict is None
        )
        """Whether the engine is configured so that a short step does all that vLLM's would."""
        self._short: SchedulerOutput | None = None
        """The last step, if it was a short one."""
        self.num_short = 0
        """Number of short steps so far."""
        self._held = HeldOutputs(self.requests)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        edges = None if throttle_prefills else self._edges()
        if edges is None:
            self._short = None
            return super().schedule(throttle_prefills)
        self._short = self._decode_all(edges)
        self.num_short += 1
        return self._short

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        is_short = scheduler_output is self._short and not model_runner_output.num_nans_in_logits
        if is_short and not self.grammar_compile_error_reqs and not self.encoder_cache_mismatch_reqs:
            outputs = self._tokens_out(scheduler_output, model_runner_output)
        else:
            outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._held.sift(outputs, is_idle=not scheduler_output.num_scheduled_tokens)
        return outputs

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        found = super().finish_requests(request_ids, finished_status)
        self._held.forget_withdrawn()
        return found

    def has_finished_requests(self) -> bool:
        """Also while outputs are held: a paused engine then takes an empty step, which sends them."""
        return bool(self._held) or super().has_finished_requests()

    def _edges(self) -> list[Request] | None:
        """The requests whose next token begins or fills a block of the KV cache; None if the step is no short one."""
        running = self.running
        if not (self._is_plain and 0 < len(running) <= self._budget) or self._pause_state != PauseState.UNPAUSED:
            return None
        has_room = len(running) + self.num_waiting_for_streaming_input < self.max_num_active_reqs
        if has_room and (self.waiting or self.kv_holding_waiting):
            return None
        edges, last, previous = [], self._slots - 1, self.prev_step_scheduled_req_ids
        for request in running:
            position = request.num_computed_tokens
            if (
                request.num_tokens != position + 1
                or request.is_prefill_chunk
                or request.request_id not in previous
                or request.structured_output_request is not None
                or request.mm_features
                or request.resumable
            ):
                return None
            if position % self._slots in (0, last):
                edges.append(request)
        return edges if len(edges) <= self.kv_cache_manager.block_pool.get_num_free_blocks() else None

    def _decode_all(self, edges: list[Request]) -> SchedulerOutput:
        """The step in which all running requests decode. What an edge needs is done by vLLM; elsewhere in a block there
        is nothing to allocate and nothing to share."""
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        blocks = {}
        for request in edges:
            found = self.kv_cache_manager.allocate_slots(request, 1)
            assert found is not None  # there are at least as many free blocks as edges
            blocks[request.request_id] = found.get_block_ids(allow_none=True)
        running = self.running
        names = [request.request_id for request in running]
        self.prev_step_scheduled_req_ids.clear()
        self.prev_step_scheduled_req_ids.update(names)
        step = SchedulerOutput(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=CachedRequestData(
                req_ids=names,
                resumed_req_ids=set(),
                new_token_ids=[],
                all_token_ids={},
                new_block_ids=[blocks.get(name) for name in names],
                num_computed_tokens=[request.num_computed_tokens for request in running],
                num_output_tokens=[request.num_output_tokens for request in running],
            ),
            num_scheduled_tokens=dict.fromkeys(names, 1),
            total_num_scheduled_tokens=len(names),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            preempted_req_ids=self.reset_preempted_req_ids,
            finished_req_ids=self.finished_req_ids,
            free_encoder_mm_hashes=self.encoder_cache_manager.get_freed_mm_hashes(),
            new_block_ids_to_zero=self._get_new_block_ids_to_zero(),
            num_spec_tokens_to_schedule=self.num_spec_tokens,
            ec_manager_metadata=self.encoder_cache_manager.get_manager_metadata(),
        )
        for request in running:
            request.num_computed_tokens += 1
            request.num_in_flight_tokens += 1
        self.finished_req_ids, self.reset_preempted_req_ids = set(), set()
        return step

    def _tokens_out(self, step: SchedulerOutput, sampled: ModelRunnerOutput) -> dict[int, EngineCoreOutputs]:
        """Append each request's token, end those that are done, and tell their callers."""
        outputs: dict[int, list[EngineCoreOutput]] = defaultdict(list)
        stopped = set()
        for name in step.num_scheduled_tokens:
            request = self.requests.get(name)
            if request is None:
                continue  # withdrawn meanwhile
            request.num_in_flight_tokens -= 1
            if request.is_finished():
                continue
            index = sampled.req_id_to_index[name]
            tokens, is_stopped = self._update_request_with_output(request, sampled.sampled_token_ids[index])
            reason, params, logprobs = None, request.sampling_params, None
            if params is not None and params.num_logprobs is not None and sampled.logprobs:
                logprobs = sampled.logprobs.slice_request(index, len(tokens))
            if is_stopped:
                reason = request.get_finished_reason()
                self._free_request(request)
                stopped.add(request)
            outputs[request.client_index].append(
                EngineCoreOutput(
                    request_id=name,
                    new_token_ids=tokens,
                    finish_reason=reason,
                    new_logprobs=logprobs,
                    stop_reason=request.stop_reason,
                    trace_headers=request.trace_headers,
                )
            )
        if stopped:
            self.running = remove_all(self.running, stopped)
        return {client: EngineCoreOutputs(outputs=some) for client, some in outputs.items()}
