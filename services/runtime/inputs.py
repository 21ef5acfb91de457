"""Checks a run's inputs when it is created, so that a missing file is one clear error instead of a failed run.

Paths must be in the operator's folders (`Settings.root_folders`) after following links. This is checked before whether
they exist, so that users who may start runs cannot probe the rest of the disk. The services that open the files check
them again, because to them a configuration is a message from a queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.contracts.errors import ConfigurationError
from services.contracts.hub import hub_place, is_hub_name
from services.contracts.model import ModelSection
from services.contracts.questions.source import Source
from services.contracts.run_config import RunConfig
from services.runtime.model_folder import check_model_folder, check_teacher_folder
from services.runtime.settings import Settings


def check_inputs(config: RunConfig, settings: Settings, prefix: str = "") -> None:
    """Raise `ConfigurationError` naming the field if the model, a data file or a permission is missing.

    `prefix` is the configuration's place in the request, for `field`.
    """
    try:
        _check_inputs(config, settings)
    except ConfigurationError as error:
        error.field = f"{prefix}{error.field}"
        raise


def _check_inputs(config: RunConfig, settings: Settings) -> None:
    check_places(config, settings)
    _check_models(config, settings.root_folders)
    for field, source in _data(config):
        if source.is_file and not Path(name := source.path).is_file():
            raise ConfigurationError(
                f"{field} is {name}, but there is no such file.",
                remedy=f"Correct it (relative paths start at {Path.cwd()}), or write hub:<owner>/<name>.",
                field=field,
            )


def check_places(config: RunConfig, settings: Settings) -> None:
    """Raise `ConfigurationError` if a model or a data file is outside the folders that runs may read, or the model
    wants to run code. Does not reveal whether they exist."""
    check_model_place(config.model, settings)
    _check_teacher_place(config, settings)
    for field, source in _data(config):
        if source.is_file:
            _check_place(field, source.path, settings.root_folders)
        else:
            hub_place(source.path, field)


def check_model(config: RunConfig, settings: Settings) -> None:
    """The models' part of `check_inputs`, for a machine that needs nothing else. Raises `ConfigurationError`."""
    check_model_place(config.model, settings)
    _check_teacher_place(config, settings)
    _check_models(config, settings.root_folders)


def check_model_place(model: ModelSection, settings: Settings) -> None:
    """The model's part of `check_places`."""
    trusts_remote_code(model, settings.allow_remote_code)
    if not is_of_hub(model.path):
        _check_place("model.path", model.path, settings.root_folders)


def _check_teacher_place(config: RunConfig, settings: Settings) -> None:
    path = config.objective.teacher_path
    if path is not None and not is_of_hub(path):
        _check_place("objective.teacher_path", path, settings.root_folders)


def trusts_remote_code(model: ModelSection, allowed: bool) -> bool:
    """Whether to run the model's own Python code. Raises `ConfigurationError` if the run wants what is not
    `allowed`."""
    if model.trust_remote_code and not allowed:
        raise ConfigurationError(
            "model.trust_remote_code is true, but this deployment does not run models' own code.",
            remedy="Remove it, or ask the operator to set TURNOUT_ALLOW_REMOTE_CODE=true.",
            field="model.trust_remote_code",
        )
    return model.trust_remote_code


def is_of_hub(path: str) -> bool:
    """Whether a model's path is a name on the hub, and no folder."""
    return is_hub_name(path) and not Path(path.split("/")[0]).exists()


def _data(config: RunConfig) -> list[tuple[str, Source]]:
    """The field that has a source's path, and the source."""
    data = config.data
    return [(f"{field}.path" if field[-1].isdecimal() else field, source) for field, source in data.sources()]


def _check_models(config: RunConfig, roots: Sequence[Path]) -> None:
    folder = _model_folder("model.path", config.model.path)
    if folder is not None:
        check_model_folder(folder, config, roots)
    if config.objective.teacher_path is not None:
        teacher = _model_folder("objective.teacher_path", config.objective.teacher_path)
        if teacher is not None:
            check_teacher_folder(teacher, folder, config, roots)


def _model_folder(field: str, path: str) -> Path | None:
    """The folder that `field` names; None for a hub name. Raises `ConfigurationError` if it has no model."""
    if is_of_hub(path):
        return None
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigurationError(
            f"{field} is {path}, but there is no such folder.",
            remedy=f"Correct it (relative folders start at {Path.cwd()}), or write a hub name as owner/name.",
            field=field,
        )
    if not (folder / "config.json").is_file():
        raise ConfigurationError(
            f"{field} is {path}, a folder without config.json.",
            remedy="Name a folder in Hugging Face format. Merge an adapter into its base model first.",
            field=field,
        )
    return folder


def _check_place(field: str, text: str, roots: Sequence[Path]) -> None:
    if not text or "\0" in text or len(text) > 4096:
        raise ConfigurationError(f"{field} is not a path.", remedy="Name a file or folder.", field=field)
    try:
        place = Path(text).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that the system rejects
        place = Path("/")
    if not any(place.is_relative_to(root) for root in roots):
        raise ConfigurationError(
            f"{field} is {text}, which is outside the folders that runs may use: {', '.join(map(str, roots))}.",
            remedy="Move it into one of them, or ask the operator to add its folder to TURNOUT_ROOTS.",
            field=field,
        )
