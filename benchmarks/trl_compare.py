"""One optimizer step of the learner against TRL's SDPOTrainer and GRPOTrainer on the same recorded rollouts.

`python -m benchmarks.trl_compare [--repeats 9] [--environment .venv-trl]` makes TRL's environment (once; the versions
of torch and transformers are ours), samples rollouts from the embedded policy, and lets all contestants make steps in
turn, each in one thread. Groups are those with two right replies at least and one wrong, so that every rollout has an
advantage and a teacher in both programs, and neither may leave anything out except by its objective.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks._trl import TRL, Spent, say, trl, trl_python
from services.learner.model.ranks import join, leave, prepare_environment

# Both programs on the CPU, in one thread; said before torch and DeepSpeed look for themselves.
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
prepare_environment()

from examples.embedded.benchmark import is_right, questions  # noqa: E402
from examples.embedded.measure import POLICY, Examinee  # noqa: E402
from examples.embedded.vocabulary import render, teacher_content  # noqa: E402
from services.contracts.model import ModelSection  # noqa: E402
from services.contracts.run_config import RunConfig, parse_run_config  # noqa: E402
from services.learner.model.engine import DeepSpeedEngine  # noqa: E402
from services.learner.model.export import load_model  # noqa: E402
from services.learner.objectives.routing import GroupOutcome, route_group  # noqa: E402
from services.learner.objectives.terms.advantages import group_advantages  # noqa: E402
from services.learner.packing.prefix_tree import grow  # noqa: E402
from services.learner.packing.sequence import TrainSequence  # noqa: E402
from services.learner.update.scoring import old_logprobs  # noqa: E402
from services.learner.update.update import run_minibatch  # noqa: E402

NUM_GROUPS, GROUP_SIZE, NUM_ASKED = 16, 8, 96
WARMUPS = 2
SHARES = (0.4, 0.2)
"""Shares of failed rollouts that SRPO is timed with besides the recorded one."""
KINDS = ("SDPO", "GRPO")
Group = dict[str, Any]


def record() -> list[Group]:
    """Groups of rollouts, as both programs read them."""
    examinee, asked = Examinee(POLICY), questions("train")[:NUM_ASKED]
    replies = examinee.replies([question.prompt for question in asked for _ in range(GROUP_SIZE)])

    def ids(text: str) -> list[int]:
        encoded: list[int] = examinee.tokenizer(text, add_special_tokens=False)["input_ids"]
        return encoded

    groups: list[Group] = []
    for index, question in enumerate(asked):
        texts = replies[index * GROUP_SIZE : (index + 1) * GROUP_SIZE]
        right = [is_right(question, text) for text in texts]
        if not 2 <= sum(right) < GROUP_SIZE:
            continue
        shown = [next(j for j in range(GROUP_SIZE) if right[j] and j != i) for i in range(GROUP_SIZE)]
        end = examinee.tokenizer.eos_token_id
        groups.append(
            {
                "prompt": render(question.prompt),
                "prompt_ids": ids(render(question.prompt)),
                "completions": [[*ids(text), end] for text in texts],
                "rewards": [float(value) for value in right],
                "teacher_prompts": [ids(render(teacher_content(question.prompt, texts[j], None))) for j in shown],
            }
        )
    assert len(groups) >= NUM_GROUPS, f"only {len(groups)} of {NUM_ASKED} groups are mixed"
    return groups[:NUM_GROUPS]


def config(name: str) -> RunConfig:
    return parse_run_config(
        {
            "name": "bench",
            "model": {"path": str(POLICY), "dtype": "float32"},
            "data": {"train": "none"},
            "objective": {"name": name},
            "optimizer": {"learning_rate": 1e-5, "warmup_steps": 0},
            "training": {"steps": 100_000, "prompts_per_step": NUM_GROUPS},
        }
    )


def prepare(groups: Sequence[Group], run: RunConfig) -> list[TrainSequence]:
    """The rollouts with routes and advantages."""
    sequences = []
    for number, group in enumerate(groups):
        rewards, fine = group["rewards"], [True] * GROUP_SIZE
        lengths = [len(ids) for ids in group["completions"]]
        outcome = GroupOutcome(rewards, fine, [False] * GROUP_SIZE, lengths)
        chosen = route_group(outcome, run.objective, str(number))
        advantages = group_advantages(rewards, fine, "mean")
        for i, (item, advantage) in enumerate(zip(chosen, advantages, strict=True)):
            ids, teacher = group["completions"][i], group["teacher_prompts"][i] if chosen[i].needs_teacher else None
            sequences.append(TrainSequence(group["prompt_ids"], ids, [0.0] * len(ids), advantage, item.route, teacher))
    return sequences


def with_failed(groups: Sequence[Group], share: float) -> list[Group]:
    """The same rollouts with rewards such that `share` of them failed, spread evenly over the groups."""
    changed, owed = [], 0.0
    for group in groups:
        owed += share * GROUP_SIZE
        wrong = int(owed + 1e-9)
        owed -= wrong
        changed.append({**group, "rewards": [0.0] * wrong + [1.0] * (GROUP_SIZE - wrong)})
    return changed


def begun_apart(groups: Sequence[Group]) -> list[Group]:
    """The same rollouts, but no two responses of a group begin alike."""
    return [
        {**group, "completions": [[number, *ids[1:]] for number, ids in enumerate(group["completions"])]}
        for group in groups
    ]


def learner(name: str, groups: Sequence[Group], ranks: Any, *, share: bool = True) -> Callable[[], Spent]:
    """Makes one step with the engine that runs use, and tells its time. `share`: common prefixes are computed once."""
    run = config(name)
    model = load_model(
        ModelSection(path=str(POLICY), dtype="float32"),
        str(POLICY),
        gradient_checkpointing=False,
        allow_remote_code=False,
    )
    if not share:
        model.set_attn_implementation("sdpa")
    engine, sequences = DeepSpeedEngine(run, model, ranks), prepare(groups, run)
    old = old_logprobs(engine, sequences, run)
    sequences = [
        dataclasses.replace(item, behaviour_logprobs=row.tolist()) for item, row in zip(sequences, old, strict=True)
    ]

    def step() -> Spent:
        started = time.perf_counter(), time.process_time()
        run_minibatch(engine, sequences, None, run)
        return time.perf_counter() - started[0], time.process_time() - started[1]

    return step


def race(contestants: dict[str, Callable[[], Spent]], repeats: int) -> dict[str, Spent]:
    """Median times by contestant; all of them in turn, `repeats` times."""
    times: dict[str, list[Spent]] = {name: [] for name in contestants}
    for number in range(WARMUPS + repeats):
        for name, step in contestants.items():
            spent = step()
            if number >= WARMUPS:
                times[name].append(spent)
    return {
        name: (statistics.median(wall for wall, _ in rows), statistics.median(cpu for _, cpu in rows))
        for name, rows in times.items()
    }


def shared_text(groups: Sequence[Group]) -> str:
    """How much Turnout's SRPO need not compute twice on these rollouts, as sentences."""
    student = [(group["prompt_ids"], ids) for group in groups for ids in group["completions"]]
    teacher = [
        (group["teacher_prompts"][i], group["completions"][i])
        for group in groups
        for i in range(GROUP_SIZE)
        if group["rewards"][i] == 0.0
    ]
    parts = []
    for name, pairs in (("student", student), ("teacher", teacher)):
        rows = [[*prompt, *ids[:-1]] for prompt, ids in pairs]
        prompts = {tuple(prompt): len(prompt) for prompt, _ in pairs}
        whole, by_prompt = sum(map(len, rows)), sum(prompts.values()) + sum(len(ids) - 1 for _, ids in pairs)
        parts.append(f"{whole} tokens of the {name}'s rows are {grow(rows).num_nodes} ({by_prompt} by prompts alone)")
    return (
        "Turnout computes common beginnings of rows once; TRL does not: for SRPO as recorded, "
        f"{' and '.join(parts)}. Responses of this small policy often begin alike, so "
        "one row uses responses whose first tokens were made to differ, and one shares nothing."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--microbatches", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--environment", type=Path, default=Path(".venv-trl"))
    arguments = parser.parse_args()
    python, groups, ranks = trl_python(arguments.environment), record(), join()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        recording = folder / "recording.json"
        recording.write_text(json.dumps(groups))
        contestants = {
            f"TRL {kind.upper()}, {size} rows a pass": stack.enter_context(trl(python, kind, recording, POLICY, size))
            for kind in ("sdpo", "grpo")
            for size in arguments.microbatches
        }
        contestants |= {f"Turnout {name.upper()}": learner(name, groups, ranks) for name in ("srpo", "sdpo", "grpo")}
        contestants["Turnout SRPO, only prompts shared"] = learner("srpo", begun_apart(groups), ranks)
        contestants["Turnout SRPO, nothing shared"] = learner("srpo", groups, ranks, share=False)
        contestants |= {
            f"Turnout SRPO, {share:.0%} failed": learner("srpo", with_failed(groups, share), ranks) for share in SHARES
        }
        say(f"{len(contestants)} contestants, {arguments.repeats} rounds")
        medians = race(contestants, arguments.repeats)
    leave()
    report(groups, medians, arguments.repeats)


def report(groups: Sequence[Group], medians: dict[str, Spent], repeats: int) -> None:
    num_rollouts = len(groups) * GROUP_SIZE
    failed = sum(group["rewards"].count(0.0) for group in groups)
    tokens = sum(len(ids) for group in groups for ids in group["completions"])
    best = {kind: min(cpu for name, (_, cpu) in medians.items() if name.startswith(f"TRL {kind}")) for kind in KINDS}
    print(
        f"## One optimizer step against TRL {TRL}\n\n"
        f"The embedded policy, {len(groups)} groups of {GROUP_SIZE} recorded rollouts ({tokens} response tokens, "
        f"{failed} of {num_rollouts} failed), the same ids of prompts, responses and teacher prompts for all, float32, "
        f"one thread each, steps in turn, medians of {repeats}. The times include loss, backward pass, AdamW and the "
        "teacher's average, but not generation, rewards and rendering prompts. TRL runs in its own training loop, "
        "Turnout with DeepSpeed as in a run. Every rollout has an advantage and a teacher prompt. TRL's cost does not "
        "depend on how many rollouts failed; SRPO's does, so it is also timed with other rewards on the same rollouts. "
        f"{shared_text(groups)} Ratios are of CPU seconds, TRL's best setting divided by the row.\n\n"
        "| step | wall seconds | CPU seconds | TRL's SDPO / this | TRL's GRPO / this |\n|---|---:|---:|---:|---:|"
    )
    for name, (wall, cpu) in medians.items():
        print(f"| {name} | {wall:.3f} | {cpu:.3f} | {best['SDPO'] / cpu:.2f} | {best['GRPO'] / cpu:.2f} |")


if __name__ == "__main__":
    main()
