"""The prompts of an evaluation: in a run by its learner, or alone by the API."""

from __future__ import annotations

import time
from typing import Any

from services.contracts.messages import PromptTask, Question, Sampling, ScoredGroup
from services.contracts.questions.source import ValidationSet
from services.contracts.rewards import deciding_parts
from services.contracts.run_config import RunConfig


def setting_of(config: RunConfig, validation: ValidationSet | None, field: str) -> Any:
    """The set's own value of a field of `evaluation`, or the configuration's."""
    own = None if validation is None else getattr(validation, field)
    return getattr(config.evaluation, field) if own is None else own


def sampling_of(config: RunConfig, validation: ValidationSet | None) -> Sampling:
    """How the questions of a set are sampled."""
    return Sampling(
        num_samples=setting_of(config, validation, "num_samples"),
        temperature=setting_of(config, validation, "temperature"),
        top_p=config.evaluation.top_p,
        top_k=0,
        max_response_tokens=config.rollout.max_response_tokens,
    )


def evaluation_task(
    config: RunConfig,
    run_id: str,
    validation: ValidationSet | None,
    question: Question,
    *,
    group_id: str,
    sequence: int,
    version: int,
) -> PromptTask:
    """One question of a set, to be sampled by weights of `version`."""
    return PromptTask(
        run_id=run_id,
        group_id=group_id,
        sequence=sequence,
        purpose="evaluation",
        question=question,
        sampling=sampling_of(config, validation),
        min_weight_version=version,
        step=version,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        fed_at=time.time(),
        rewards=deciding_parts(config.train_parts()),
    )


def usable_samples(group: ScoredGroup) -> list[bool]:
    """Whether each sample is free of infrastructure faults in both sampling and judging."""
    pairs = zip(group.group.rollouts, group.verdicts, strict=True)
    return [rollout.status == "ok" and verdict.status == "ok" for rollout, verdict in pairs]
