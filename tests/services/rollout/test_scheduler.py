"""Our scheduler next to that of vLLM: the same requests, pauses and tokens give the same steps, outputs and states."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from services.rollout.vllm import held_outputs
from services.rollout.vllm.blocks import block_tokens
from services.rollout.vllm.engine import EngineSpec, engine_arguments, hf_config
from services.rollout.vllm.scheduler import DecodingScheduler
from tests.conftest import ROOT

SLOTS = block_tokens("float32")
"""Tokens in a block of the KV cache, on a CPU."""
STOP = 7
STATE = (
    "status",
    "stop_reason",
    "num_computed_tokens",
    "num_in_flight_tokens",
    "num_preemptions",
    "is_prefill_chunk",
    "block_hashes",
)
"""What is compared of a request besides its tokens."""


def make(kind: type[Scheduler], num_seqs: int, num_blocks: int) -> Scheduler:
    spec = EngineSpec(str(ROOT / "examples/embedded/policy"), "float32", 400, num_seqs, 0, trust_remote_code=False)
    arguments = engine_arguments(spec, hf_config(spec)) | {"max_num_batched_tokens": 512, "worker_extension_cls": ""}
    config = AsyncEngineArgs(**arguments).create_engine_config()
    config.cache_config.num_gpu_blocks = num_blocks
    layers = FullAttentionSpec(block_size=SLOTS, num_kv_heads=1, head_size=8, dtype=torch.float32)
    return kind(
        config,
        KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], layers)]),
        StructuredOutputManager(config),
        block_size=SLOTS,
    )


class Pair:
    """vLLM's scheduler and ours, driven alike."""

    def __init__(self, seed: int, num_seqs: int, num_blocks: int) -> None:
        init_none_hash(sha256)
        self.random = random.Random(seed)
        self.both = [make(kind, num_seqs, num_blocks) for kind in (Scheduler, DecodingScheduler)]
        self.ours = self.both[1]
        assert isinstance(self.ours, DecodingScheduler)
        self.num_steps = 0
        self._hasher = get_request_block_hasher(SLOTS, sha256)
        self._names = iter(range(10**6))

    def add(self, prompt: Sequence[int], max_tokens: int, salt: str = "0", is_streamed: bool = False) -> None:
        name = f"r{next(self._names)}{'s' if is_streamed else ''}"
        kind = RequestOutputKind.DELTA if is_streamed else RequestOutputKind.FINAL_ONLY
        for scheduler in self.both:
            params = SamplingParams(
                max_tokens=max_tokens,
                stop_token_ids=[STOP],
                logprobs=0,
                detokenize=False,
                output_kind=kind,
            )
            request = Request(
                name, list(prompt), params, None, arrival_time=0.0, cache_salt=salt, block_hasher=self._hasher
            )
            scheduler.add_request(request)

    def add_any(self) -> None:
        """A group's requests, whose prompts are alike and may fill blocks."""
        length = self.random.choice((3, SLOTS - 5, SLOTS, SLOTS + 1, 2 * SLOTS - 2))
        prompt = [self.random.choice((1, 2)), *[3] * (length - 1)]
        for _ in range(self.random.randint(1, 4)):
            self.add(prompt, self.random.choice((1, 4, 60)), self.random.choice("01"), self.random.random() < 0.2)

    def disturb(self) -> None:
        """Whatever may happen between two steps."""
        draw = self.random.random()
        if draw < 0.06:
            self.add_any()
        elif draw < 0.08:
            self.withdraw_any()
        elif draw < 0.10:
            self.pause(self.random.choice((PauseState.PAUSED_ALL, PauseState.PAUSED_NEW)))
        elif draw < 0.25:
            self.pause(PauseState.UNPAUSED)

    def withdraw_any(self) -> None:
        if names := sorted(self.both[0].requests):
            name = self.random.choice(names)
            for scheduler in self.both:
                scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def pause(self, state: PauseState) -> None:
        for scheduler in self.both:
            scheduler.set_pause_state(state)

    def step(self, withdraws: bool = False) -> list[dict[int, Any]]:
        """One step of both, the same for the engine and with the same state after it. Returns the outputs of both."""
        theirs, ours = (scheduler.schedule() for scheduler in self.both)
        assert vars(theirs) == vars(ours)
        if withdraws:
            self.withdraw_any()
        sampled = self._sampled(theirs)
        outputs = [s.update_from_output(step, sampled()) for s, step in zip(self.both, (theirs, ours), strict=True)]
        states = [state(scheduler) for scheduler in self.both]
        assert states[0] == states[1]
        self.num_steps += theirs.total_num_scheduled_tokens > 0
        return outputs

    def _sampled(self, step: SchedulerOutput) -> Any:
        requests, tokens = self.both[0].requests, []
        for name in step.num_scheduled_tokens:
            request = requests.get(name)
            samples = request is not None and request.num_computed_tokens >= request.num_tokens
            tokens.append([self.random.choice((STOP, *range(10, 40)))] if samples else [])
        numbers = np.arange(len(tokens), dtype=np.float32)[:, None]
        return lambda: ModelRunnerOutput(
            req_ids=list(step.num_scheduled_tokens),
            req_id_to_index={name: index for index, name in enumerate(step.num_scheduled_tokens)},
            sampled_token_ids=[list(some) for some in tokens],
            logprobs=LogprobsLists(numbers.astype(np.int32), -numbers, numbers[:, 0].astype(np.int32)),
            prompt_logprobs_dict={},
            pooler_output=[],
        )


def told(outputs: dict[int, Any]) -> Any:
    def one(output: Any) -> Any:
        logprobs = (
            None if output.new_logprobs is None else [np.asarray(some).tolist() for some in output.new_logprobs[:3]]
        )
        rest = {name: getattr(output, name) for name in output.__struct_fields__ if name != "new_logprobs"}
        stats = rest.pop("prefill_stats")
        return rest, logprobs, None if stats is None else vars(stats)

    return {
        client: ([one(output) for output in found.outputs], found.finished_requests, found.scheduler_stats)
        for client, found in outputs.items()
    }


def state(scheduler: Scheduler) -> Any:
    pool = scheduler.kv_cache_manager.block_pool
    return (
        [[list(request.all_token_ids), *(getattr(request, name) for name in STATE)] for request in scheduler.running],
        [request.request_id for request in (*scheduler.running, *scheduler.waiting)],
        {name: scheduler.kv_cache_manager.get_block_ids(name) for name in scheduler.requests},
        [(block.block_id, block.ref_cnt, block.block_hash) for block in pool.blocks],
        [block.block_id for block in pool.free_block_queue.get_all_free_blocks()],
        (scheduler.finished_req_ids, scheduler.prev_step_scheduled_req_ids, scheduler.current_step),
    )


@pytest.mark.parametrize(("num_seqs", "num_blocks"), [(4, 40), (16, 60), (16, 9)])
@pytest.mark.parametrize("seed", range(4))
def test_steps_outputs_and_states_are_those_of_vllms_scheduler(
    monkeypatch: pytest.MonkeyPatch, seed: int, num_seqs: int, num_blocks: int
) -> None:
    """Also with more requests than fit, a cache so small that requests are preempted, withdrawals and pauses."""
    monkeypatch.setattr(held_outputs, "HOLD_SECONDS", 0.0)
    pair = Pair(seed, num_seqs, num_blocks)
    for turn in range(400):
        pair.disturb()
        theirs, ours = pair.step(withdraws=turn % 29 == 0)
        assert told(theirs) == told(ours)
    assert pair.ours.num_short > 0.3 * pair.num_steps


def test_a_batch_decodes_in_short_steps_only() -> None:
    """But for the prefill; responses that end do not cost more than their own step."""
    pair = Pair(0, num_seqs=16, num_blocks=60)
    for _ in range(4):
        pair.add([1] * (SLOTS + 4), max_tokens=50)
    for _ in range(51):
        pair.step()
    assert not pair.ours.running
    assert pair.ours.num_short == pair.num_steps - 1


def test_a_group_computes_its_prompt_once_but_for_a_rest() -> None:
    pair = Pair(0, num_seqs=16, num_blocks=60)
    for _ in range(8):
        pair.add([1] * 40, max_tokens=50)
    [scheduled, _] = (scheduler.schedule() for scheduler in pair.both)
    assert scheduled.total_num_scheduled_tokens == 40 + 7 * 8


class Heard:
    """What a caller has been told of each request so far."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.logprobs: dict[str, list[list[float]]] = defaultdict(list)
        self.ends: dict[str, Any] = {}
        self.num_messages = 0

    def hear(self, outputs: dict[int, Any]) -> None:
        for output in (output for found in outputs.values() for output in found.outputs):
            self.num_messages += 1
            self.tokens[output.request_id] += output.new_token_ids
            if output.new_logprobs is not None:
                self.logprobs[output.request_id] += np.concatenate(output.new_logprobs[:2], axis=1).tolist()
                assert len(output.new_logprobs.sampled_token_ranks) == len(output.new_token_ids)
            if output.finish_reason is not None:
                self.ends[output.request_id] = output.finish_reason, output.stop_reason

    def of(self, names: Iterable[str]) -> Any:
        return {name: (self.tokens.get(name), self.logprobs.get(name), self.ends.get(name)) for name in names}


@pytest.mark.parametrize(("num_seqs", "num_blocks"), [(4, 40), (16, 60), (16, 9)])
@pytest.mark.parametrize("seed", range(4))
def test_held_tokens_arrive_at_the_end_and_before_a_pause_is_complete(
    monkeypatch: pytest.MonkeyPatch, seed: int, num_seqs: int, num_blocks: int
) -> None:
    """First tokens, and those of requests whose caller reads as they come, are not held."""
    monkeypatch.setattr(held_outputs, "HOLD_SECONDS", float("inf"))
    pair, all_heard = Pair(seed, num_seqs, num_blocks), [Heard(), Heard()]
    for turn in range(400):
        pair.disturb()
        for heard, outputs in zip(all_heard, pair.step(withdraws=turn % 29 == 0), strict=True):
            heard.hear(outputs)
        theirs, ours = all_heard
        assert set(theirs.tokens) == set(ours.tokens)
        now = {name for name in theirs.tokens if name in theirs.ends or name.endswith("s")}
        if pair.ours.pause_state == PauseState.PAUSED_ALL:
            now |= set(pair.ours.requests)
            assert pair.ours.has_requests() == pair.both[0].has_requests(), "the pause is complete"
        assert theirs.of(now) == ours.of(now)
    assert ours.num_messages < 0.7 * theirs.num_messages


def test_tokens_are_not_held_longer_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page shows how many tokens are sampled, and an engine without new ones is taken for one that hangs."""
    now = 1000.0
    monkeypatch.setattr(held_outputs, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(held_outputs, "HOLD_SECONDS", 1.0)
    pair, heard, known = Pair(0, num_seqs=16, num_blocks=60), Heard(), []
    pair.random = random.Random(1)  # no stop token among the first
    pair.add([1] * 10, max_tokens=300)
    for _ in range(8):
        heard.hear(pair.step()[1])
        known.append(len(heard.tokens["r0"]))
        now += 0.25
    assert known == [1, 1, 1, 1, 5, 5, 5, 5]
