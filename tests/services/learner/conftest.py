"""Fixtures of the learner's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.contracts.arrays import LogProbs, TokenIds
from services.contracts.messages import (
    CompletedGroup,
    PromptTask,
    Question,
    Rollout,
    Sampling,
    ScoredGroup,
    Verdict,
    VersionSpan,
)
from services.runtime.queue.queue import Delivery
from tests.services.learner.engine_runs import EngineRuns
from tests.services.learner.programs import Programs

GroupMaker = Callable[..., ScoredGroup]


def make_group(
    sequence: int,
    *,
    rewards: tuple[float, ...] = (1.0, 0.0, 0.0),
    version: int = 0,
    faulty: tuple[int, ...] = (),
    prompt: str = "What is 2 + 2?",
    feedback: str = "",
) -> ScoredGroup:
    """A scored train group; rollouts listed in `faulty` carry an infrastructure fault."""
    question = Question(id=str(sequence), kind="mcq", prompt=prompt, answer="B")
    task = PromptTask(
        run_id="run",
        group_id=f"train-{sequence}",
        sequence=sequence,
        purpose="train",
        question=question,
        sampling=Sampling(num_samples=len(rewards), temperature=1.0, top_p=1.0, top_k=0, max_response_tokens=8),
        min_weight_version=0,
        step=0,
        max_prompt_tokens=64,
        fed_at=0.0,
    )
    rollouts = [
        Rollout(status="infrastructure_fault", fault="engine died")
        if index in faulty
        else Rollout(
            status="ok",
            text=f"answer {index}",
            token_ids=TokenIds([5, 6]),
            logprobs=LogProbs([-1.0, -1.0]),
            weight_versions=[VersionSpan(version, 0, 2)],
        )
        for index in range(len(rewards))
    ]
    verdicts = [
        Verdict(status="infrastructure_fault", fault="engine died")
        if index in faulty
        else Verdict(status="ok", reward=reward, correct=reward == 1.0, feedback=feedback)
        for index, reward in enumerate(rewards)
    ]
    group = CompletedGroup(task=task, prompt_token_ids=TokenIds([1, 2, 3]), rollouts=rollouts, server="r", seconds=0.0)
    return ScoredGroup(group=group, verdicts=verdicts, verifier="v")


class Letters:
    """A tokenizer with one token per character and no template."""

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> list[int]:
        return [ord(letter) for letter in messages[-1]["content"]]


def delivered(group: ScoredGroup) -> Delivery[ScoredGroup]:
    return Delivery(group, "scored", f"{group.group.task.sequence}-0")


@pytest.fixture(scope="session")
def programs() -> Iterator[Programs]:
    """Starts training programs without repeating their imports."""
    started = Programs()
    yield started
    started.close()


@pytest.fixture(scope="session")
def engine_runs(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> EngineRuns:
    """Trainings of a tiny model under every ZeRO stage, in real processes, each run once."""
    return EngineRuns(programs, tmp_path_factory)


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes a dataset file from lines."""

    def write(*lines: str) -> Path:
        path = tmp_path / "questions.jsonl"
        path.write_text("\n".join(lines))
        return path

    return write
