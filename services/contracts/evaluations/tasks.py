"""The prompts of an evaluation: in a run by its learner, or alone by the API."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import msgspec

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
        min_p=config.evaluation.min_p or msgspec.UNSET,
        presence_penalty=config.evaluation.presence_penalty or msgspec.UNSET,
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
    seed: int | None = None,
) -> PromptTask:
    """One question of a set, to be sampled by weights of `version`. With a `seed`, its samples depend on nothing but
    the seed, the question, the sampling settings and the weights."""
    sampling = sampling_of(config, validation)
    if seed is not None:
        label = "" if validation is None else validation.label
        digest = hashlib.sha256(f"{seed}/{label}/{sequence}/{question.id}".encode()).digest()
        sampling = msgspec.structs.replace(sampling, seed=int.from_bytes(digest[:7]))
    return PromptTask(
        run_id=run_id,
        group_id=group_id,
        sequence=sequence,
        purpose="evaluation",
        question=question,
        sampling=sampling,
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
