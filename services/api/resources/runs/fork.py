"""Forks: runs that continue from another run's checkpoint with changed settings.

The child has the checkpoint in its own folder and starts like a restarted learner: weights, optimizer state,
self-teacher, random state, step number and position in the data continue, and `changes` apply from there. The child
does not need the parent afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.api.resources.runs.schemas import ForkRequest
from services.contracts.errors import ConfigurationError, ConflictError, UnavailableError
from services.contracts.model import ModelSection
from services.contracts.run_config import RunConfig, merge, parse_run_config, without_untaken
from services.runtime.files import sync
from services.runtime.weights.checkpoint_files import (
    CorruptCheckpointError,
    checkpoint_folder,
    checkpoint_steps,
    give_checkpoint,
    read_checkpoint_manifest,
)

UNSETTLED = ".unsettled"
"""Mark in a run's folder: delete it unless the run is stored. The API may be killed between writing the two."""
_EVALUATION_SWITCHES = ("every_steps", "before_training", "after_training")


def forked_config(parent: dict[str, Any], request: ForkRequest, step: int) -> RunConfig:
    """The child's configuration: the parent's with `changes` merged into it, section by section.

    Raises:
        ConfigurationError: with the field as a dotted path from the body's root (`changes.training.steps`).
    """
    base = merge(parent, {"name": request.name or _default_name(str(parent["name"]), step)})
    for name in ("name", "preset"):
        if name in request.changes:
            raise _refused(name, "Send the name next to `changes`." if name == "name" else "Set the fields themselves.")
    if base["data"].get("validation") is None:
        # Without validation questions these switches were off; with questions the defaults apply again.
        kept = {key: value for key, value in base["evaluation"].items() if key not in _EVALUATION_SWITCHES}
        base = {**base, "evaluation": kept}
    section = request.changes.get("objective")
    base = without_untaken(base, section.get("name") if isinstance(section, dict) else None)
    try:
        config = parse_run_config(merge(base, request.changes))
    except ConfigurationError as error:
        error.field = f"changes.{error.field}" if error.field else "changes"
        raise
    for name, value in ModelSection.model_validate(parent["model"]):
        if getattr(config.model, name) != value:
            raise _refused(
                f"model.{name}",
                "The checkpoint's weights and optimizer state fit only that model. To start over from its weights, "
                "create a run whose model.path is the checkpoint's `hf` folder.",
            )
    if config.training.steps <= step:
        raise ConfigurationError(
            f"training.steps is {config.training.steps}, but the fork begins at step {step} and counts on from there.",
            remedy=f"Set changes.training.steps to more than {step}.",
            field="changes.training.steps",
        )
    return config


def choose_checkpoint(run_folder: Path, wanted: int | None) -> int:
    """Step of the checkpoint to fork from: the one asked for, or the newest complete one.

    Raises:
        ConfigurationError: there is no such checkpoint; lists those that exist.
        ConflictError: there is none at all.
    """
    steps = [step for step in checkpoint_steps(run_folder) if _is_complete(run_folder, step)]
    if not steps:
        raise ConflictError(
            "The run has no checkpoint to fork from.", remedy="Wait for one, or stop the run, which writes one."
        )
    if wanted is None:
        return steps[-1]
    if wanted not in steps:
        raise ConfigurationError(
            f"checkpoint is {wanted}, but the run has no checkpoint of that step on disk.",
            remedy=f"Choose one of {', '.join(map(str, steps))}, or leave it out for the newest.",
            field="checkpoint",
        )
    return wanted


def hand_over(parent_folder: Path, child_folder: Path, step: int) -> int:
    """Link the checkpoint's files into the child's folder. Returns the checkpoint's size in bytes.

    The child's folder is marked first, until `settle` is called.

    Raises:
        ConflictError: the parent deleted the checkpoint in the meantime.
        UnavailableError: the child's folder cannot be written.
    """
    try:
        unsettle(child_folder)
        return give_checkpoint(parent_folder, child_folder, step).bytes
    except CorruptCheckpointError as error:
        raise ConflictError(
            f"The checkpoint of step {step} can no longer be used: {error.message}",
            remedy="Fork again; there may be a newer one.",
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"The checkpoint could not be linked into the new run's folder: {error.strerror}.",
            remedy="Check the disk that holds TURNOUT_HOME.",
        ) from error


def unsettle(run_folder: Path) -> None:
    """Mark the folder, creating it if it is missing."""
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / UNSETTLED).touch()
    sync(run_folder)


def settle(run_folder: Path) -> None:
    """Remove the mark, because the run is stored."""
    (run_folder / UNSETTLED).unlink(missing_ok=True)


def unsettled(runs_folder: Path) -> list[Path]:
    """Folders that are still marked. Unmarked ones may belong to runs in another database."""
    return [mark.parent for mark in runs_folder.glob(f"*/{UNSETTLED}")]


def _is_complete(run_folder: Path, step: int) -> bool:
    try:
        read_checkpoint_manifest(checkpoint_folder(run_folder, step))
    except CorruptCheckpointError:
        return False
    return True


def _default_name(parent: str, step: int) -> str:
    ending = f" from {step}"
    return parent[: 100 - len(ending)] + ending


def _refused(field: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(
        f"changes.{field}: a fork cannot change this field.", remedy=remedy, field=f"changes.{field}"
    )
