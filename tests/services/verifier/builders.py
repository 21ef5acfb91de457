"""Short builders for the ring's messages."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from services.contracts.arrays import LogProbs, TokenIds
from services.contracts.messages import CompletedGroup, PromptTask, Purpose, Question, Rollout, Sampling, VersionSpan


def question(kind: str, answer: str = "", tests: object = "", prompt: str = "?") -> Question:
    """A question; `tests` other than text are written as JSON."""
    return Question(
        id=f"{kind}-1",
        kind=kind,
        prompt=prompt,
        answer=answer,
        tests=tests if isinstance(tests, str) else json.dumps(tests),
    )


def rollout(text: str, *, truncated: bool = False) -> Rollout:
    """A sampled reply of three tokens."""
    return Rollout(
        status="ok",
        text=text,
        token_ids=TokenIds([1, 2, 3]),
        logprobs=LogProbs([-0.5, -0.5, -0.5]),
        weight_versions=[VersionSpan(0, 0, 3)],
        finish_reason="length" if truncated else "stop",
    )


def group(
    asked: Question,
    rollouts: Sequence[Rollout],
    *,
    run_id: str = "r1",
    sequence: int = 0,
    purpose: Purpose = "train",
) -> CompletedGroup:
    """A completed group with these rollouts."""
    task = PromptTask(
        run_id=run_id,
        group_id=f"{purpose}-{sequence}",
        sequence=sequence,
        purpose=purpose,
        question=asked,
        sampling=Sampling(num_samples=len(rollouts), temperature=1.0, top_p=1.0, top_k=0, max_response_tokens=16),
        min_weight_version=0,
        step=0,
        max_prompt_tokens=64,
        fed_at=time.time(),
    )
    return CompletedGroup(
        task=task, prompt_token_ids=TokenIds([1]), rollouts=list(rollouts), server="rollout-0", seconds=0.1
    )
