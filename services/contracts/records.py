"""A run's history as the REST API shows it: the API's schemas and the client's values are made from these classes.

Most records are events that the API has stored. What an event says is defined in `services.contracts.events` only: the
tables are made from the events too (`services.api.storage.history`). Unknown fields are ignored, so that a client can
talk to a newer API. Answers do not repeat `run_id`; the client fills it in.
"""

from __future__ import annotations

from services.contracts.events import CheckpointWritten, EvaluationFinished, Event, StepFinished


class Step(StepFinished, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """One training step."""

    run_id: str = ""


class Evaluation(EvaluationFinished, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """avg@k and pass@k of one split after one step (0: before training)."""

    run_id: str = ""


class Checkpoint(CheckpointWritten, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A durable checkpoint."""

    run_id: str = ""
    exists: bool = False
    """Whether the folder is still on disk: older ones are deleted by the run's checkpoint policy."""


class WeightPush(Event, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """One attempt to bring one rollout server to one weight version."""

    run_id: str = ""
    version: int
    instance: str
    seconds: float
    error: str = ""
    """Empty if the server's checksum was confirmed; otherwise what failed."""
    transport: str = "store"
    """How the weights went, or were last tried: `store`, `http`, `cuda_ipc` or `nccl`."""
