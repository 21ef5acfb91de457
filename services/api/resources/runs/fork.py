"""Forks: a new run that goes on from another run's checkpoint with changed settings.

The child has the checkpoint in its own folder and starts as a learner does that was restarted there: weights, optimizer
state, self-teacher, random state, step number and position in the data go on; what `changes` names is different from
then on. Nothing of the parent is needed afterwards.
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
"""Mark in a run's folder: delete it unless the run is stored. A kill may come between the folder and the database."""
_EVALUATION_SWITCHES = ("every_steps", "before_training", "after_training")


def forked_config(parent: dict[str, Any], request: ForkRequest, step: int) -> RunConfig:
    """The child's configuration: the parent's with `changes` laid on it, section by section.

    Raises:
        ConfigurationError: names the field, in dots from the body's root (`changes.training.steps`).
    """
    base = merge(parent, {"name": request.name or _default_name(str(parent["name"]), step)})
    for name in ("name", "preset"):
        if name in request.changes:
            raise _refused(name, "Send the name beside `changes`." if name == "name" else "Name the fields themselves.")
    if base["data"].get("validation") is None:
        # Without questions its switches were turned off; with questions the defaults hold again.
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
                "The checkpoint's weights and optimizer state fit that model only. To begin afresh from its weights, "
                "create a run whose model.path is the checkpoint's folder `hf`.",
            )
    if config.training.steps <= step:
        raise ConfigurationError(
            f"training.steps is {config.training.steps}, but the fork begins at step {step}; steps go on counting.",
            remedy=f"Set changes.training.steps to more than {step}.",
            field="changes.training.steps",
        )
    return config


def choose_checkpoint(run_folder: Path, wanted: int | None) -> int:
    """Step of the checkpoint to fork from: the one asked for, or the newest complete one.

    Raises:
        ConfigurationError: there is no such checkpoint; names those that there are.
        ConflictError: there is none at all.
    """
    steps = [step for step in checkpoint_steps(run_folder) if _is_complete(run_folder, step)]
    if not steps:
        raise ConflictError("The run has no checkpoint to fork from.", remedy="Wait for one, or stop the run with one.")
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
    """Give the child its own names of the checkpoint's files. Returns its size in bytes.

    The child's folder is marked first, until `settle`.

    Raises:
        ConflictError: the parent deleted the checkpoint meanwhile.
        UnavailableError: the child's folder cannot be written.
    """
    try:
        unsettle(child_folder)
        return give_checkpoint(parent_folder, child_folder, step).bytes
    except CorruptCheckpointError as error:
        raise ConflictError(
            f"The checkpoint of step {step} cannot be used any more: {error.message}",
            remedy="Fork again; a newer one may be there.",
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"The checkpoint could not be put into the new run's folder: {error.strerror}.",
            remedy="Look at the disk under TURNOUT_HOME.",
        ) from error


def unsettle(run_folder: Path) -> None:
    """Mark the folder, which is made where it is missing."""
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / UNSETTLED).touch()
    sync(run_folder)


def settle(run_folder: Path) -> None:
    """Take the mark away: the run is stored."""
    (run_folder / UNSETTLED).unlink(missing_ok=True)


def unsettled(runs_folder: Path) -> list[Path]:
    """Folders that are still marked. Other folders may well be those of runs in another database."""
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
    return ConfigurationError(f"changes.{field}: a fork cannot change it.", remedy=remedy, field=f"changes.{field}")
