"""What the API says of a run's history. Times are Unix seconds. Names of numbers are those of the contracts."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Row(BaseModel):
    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)


class StepItem(Row):
    step: int
    at: float
    metrics: dict[str, float]
    groups: dict[str, int]


class StepList(BaseModel):
    items: list[StepItem]
    next_after: int | None
    """Pass as `after` to get what follows; null where this is the newest step."""


class EvaluationItem(Row):
    step: int
    split: str
    at: float
    num_questions: int
    num_samples: int
    """k."""
    accuracy: float
    """avg@k."""
    pass_at_k: float
    accuracy_by_kind: dict[str, float]
    response_tokens_mean: float
    truncated_ratio: float
    num_faults: int
    seconds: float


class EvaluationList(BaseModel):
    items: list[EvaluationItem]


class CheckpointItem(Row):
    step: int
    at: float
    path: str
    bytes: int
    seconds: float
    exists: bool = False
    """Whether the folder is still on disk: older ones are deleted by the run's checkpoint policy."""


class CheckpointList(BaseModel):
    items: list[CheckpointItem]


class WeightPushItem(Row):
    version: int
    instance: str
    at: float
    seconds: float
    error: str
    """Empty where the server's checksum was confirmed."""
    transport: str
    """How the weights went, or were last tried: `store`, `cuda_ipc` or `nccl`."""


class WeightPushList(BaseModel):
    items: list[WeightPushItem]


class SampleGroup(Row):
    step: int
    group_id: str
    at: float
    question_id: str
    prompt: str
    answer: str
    samples: list[dict[str, Any]]
    """Rollouts with reward, route, texts and per-token numbers, as in `contracts.events.Sample`."""


class SampleList(BaseModel):
    items: list[SampleGroup]
