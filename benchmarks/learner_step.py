"""CPU seconds of one optimizer update by objective, on the embedded policy's shape, one thread.

`python -m benchmarks.learner_step [--failed 0.4 0.2 0.05] [--repeats 15]`: 8 groups of 8 rollouts, prompts and
responses about as long as the embedded benchmark's, teacher prompts longer by one response. Generation and DeepSpeed
are left out: what is timed is `run_minibatch` with plain AdamW, and the teacher's moving average.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from services.contracts.run_config import ObjectiveSection, RunConfig, parse_run_config
from services.learner.model.linear import use_onednn
from services.learner.model.tree_attention import share_prefixes
from services.learner.objectives.routing import GroupOutcome, route_group
from services.learner.objectives.terms.advantages import group_advantages
from services.learner.packing.sequence import TrainSequence
from services.learner.update.statistics import MinibatchReport
from services.learner.update.update import run_minibatch

NUM_GROUPS, GROUP_SIZE = 8, 8
WARMUPS = 2


def policy(vocabulary: int, hidden: int, layers: int = 2, middle: int = 256) -> Qwen3ForCausalLM:
    """A Qwen3 of random weights; the embedded policy's shape with vocabulary 150 and hidden 96."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=middle,
            num_hidden_layers=layers,
            num_attention_heads=max(3, hidden // 32),
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


class PlainEngine:
    """One process, AdamW, moving-average teacher."""

    rank, num_ranks, device = 0, 1, torch.device("cpu")

    def __init__(self, vocabulary: int = 150, hidden: int = 96, layers: int = 2, middle: int = 256) -> None:
        shape = (vocabulary, hidden, layers, middle)
        self.student = policy(*shape)
        self.teacher = policy(*shape).requires_grad_(False)
        for model in (self.student, self.teacher):
            use_onednn(model)
            assert share_prefixes(model)
        self.reference: torch.nn.Module | None = None
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4, fused=True)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def all_reduce_max(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def step(self) -> float:
        norm = float(torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0))
        self.optimizer.step()
        self.optimizer.zero_grad()
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        with torch.no_grad():
            for old, new in pairs:
                old.lerp_(new, 0.05)
        return norm


def batch(objective: ObjectiveSection, failed: float, vocabulary: int = 150, scale: int = 1) -> list[TrainSequence]:
    """Groups in which the share `failed` of the rollouts is wrong, spread evenly, routed as in a run."""
    rng = random.Random(0)
    sequences: list[TrainSequence] = []
    wrong_so_far = 0.0
    for _ in range(NUM_GROUPS):
        wrong_so_far += failed * GROUP_SIZE
        wrong = int(wrong_so_far + 1e-9)
        wrong_so_far -= wrong
        rewards = [0.0] * wrong + [1.0] * (GROUP_SIZE - wrong)
        prompt = [rng.randrange(vocabulary) for _ in range(rng.randint(8, 24) * scale)]
        replies = [[rng.randrange(vocabulary) for _ in range(rng.randint(20, 40) * scale)] for _ in rewards]
        fine = [True] * GROUP_SIZE
        outcome = GroupOutcome([reward > 0 for reward in rewards], fine, [False] * GROUP_SIZE, [*map(len, replies)])
        advantages = group_advantages(rewards, fine, objective.advantage)
        for reply, advantage, chosen in zip(replies, advantages, route_group(outcome, objective, "0"), strict=True):
            shown = replies[chosen.demonstration] if chosen.demonstration is not None else []
            sequences.append(
                TrainSequence(
                    prompt_ids=prompt,
                    response_ids=reply,
                    behaviour_logprobs=[-5.0] * len(reply),
                    advantage=advantage,
                    route=chosen.route,
                    teacher_prompt_ids=prompt + shown if chosen.needs_teacher else None,
                )
            )
    return sequences


def config(name: str) -> RunConfig:
    return parse_run_config(
        {
            "name": "bench",
            "model": {"path": "none", "dtype": "float32"},
            "data": {"train": "none"},
            "objective": {"name": name},
            "training": {"steps": 1},
        }
    )


def measure(objectives: Sequence[str], failed: float, repeats: int) -> dict[str, tuple[float, MinibatchReport]]:
    """Median CPU seconds of an update and the last report, by objective; all of them in turn."""
    runs = {name: config(name) for name in objectives}
    engines = {name: PlainEngine() for name in objectives}
    sequences = {name: batch(run.objective, failed) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in objectives}
    reports: dict[str, MinibatchReport] = {}
    for number in range(WARMUPS + repeats):
        for name, run in runs.items():
            started = time.process_time()
            reports[name] = run_minibatch(engines[name], sequences[name], None, run)
            if number >= WARMUPS:
                seconds[name].append(time.process_time() - started)
    return {name: (statistics.median(seconds[name]), reports[name]) for name in objectives}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--failed", type=float, nargs="+", default=[0.4, 0.2, 0.05])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "## An update by objective and share of failed rollouts\n\n"
        f"{NUM_GROUPS} groups of {GROUP_SIZE} rollouts about as long as the embedded benchmark's, a policy of its "
        f"shape, one thread, plain AdamW; objectives in turn, medians of {arguments.repeats} in CPU seconds. "
        "Responses are random, so only prompts are shared. Needed/computed: tokens that the passes needed, counting "
        "common ones once, relative to those that they computed.\n\n"
        "| failed | objective | CPU seconds | relative to sdpo | teacher passes | needed/computed |\n"
        "|---:|---|---:|---:|---:|---:|"
    )
    for failed in arguments.failed:
        results = measure(("sdpo", "srpo", "grpo", "advantage_mix"), failed, arguments.repeats)
        for name, (seconds, report) in results.items():
            fill = report.sums["num_needed_tokens"] / report.sums["num_computed_tokens"]
            print(
                f"| {failed:.0%} | {name} | {seconds:.3f} | {seconds / results['sdpo'][0]:.2f} | "
                f"{report.sums['num_teacher_rollouts']:.0f} of {NUM_GROUPS * GROUP_SIZE} | {fill:.3f} |"
            )


if __name__ == "__main__":
    main()
