"""A teacher of its own (`objective.teacher_path`): a model next to the policy that no update changes.

Checkpoints do not contain it, but which one it was: a run resumes with the same teacher or not at all.
"""

from __future__ import annotations

import hashlib

import msgspec
import torch
from torch import nn

from services.contracts.errors import ConfigurationError
from services.contracts.run_config import RunConfig
from services.learner.model.export import load_model

FIELD = "objective.teacher_path"


class TeacherSource(msgspec.Struct, frozen=True):
    """What a checkpoint keeps of the teacher."""

    path: str
    """`objective.teacher_path`."""
    sha256: str
    """Of its weights (`digest_of`)."""


def load_teacher(config: RunConfig) -> nn.Module | None:
    """The run's fixed teacher in `model.dtype`; None if it has none. Never runs Python code of the model's.

    Raises:
        ConfigurationError: it cannot be loaded.
    """
    if config.objective.teacher_path is None:
        return None
    section = config.model.model_copy(update={"trust_remote_code": False})
    path = config.objective.teacher_path
    return load_model(section, path, gradient_checkpointing=False, allow_remote_code=False, field=FIELD)


def source_of(config: RunConfig, model: nn.Module | None, known: TeacherSource | None) -> TeacherSource | None:
    """What the run's checkpoints say of its fixed teacher; None without one.

    Args:
        known: what the checkpoint says that the run continues from. A fork may name another path.

    Raises:
        ConfigurationError: the model at the same path is another one than the checkpoint was trained with.
    """
    if model is None or (path := config.objective.teacher_path) is None:
        return None
    source = TeacherSource(path, digest_of(model))
    if known is not None and known.path == path and known.sha256 != source.sha256:
        raise ConfigurationError(
            f"{FIELD} is {path}, but the weights there have changed since the checkpoint: SHA-256 "
            f"{source.sha256[:12]}, was {known.sha256[:12]}.",
            remedy="Restore the model and resume the run, or fork it with the new one under another path.",
            field=FIELD,
        )
    return source


@torch.no_grad()
def digest_of(model: nn.Module) -> str:
    """SHA-256 of a whole model's weights, by name, in the type that passes use."""
    digest = hashlib.sha256()
    parameters, saved = dict(model.named_parameters()), model.state_dict()
    weights = parameters | {name: value for name, value in saved.items() if name in dict(model.named_buffers())}
    for name, value in weights.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
