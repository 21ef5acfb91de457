"""Checks of a run's inputs at creation, so that a missing file is one clear sentence now, not a failed run later.

Paths must lie in the operator's folders (`Settings.root_folders`), links followed, before anything is said of whether
they exist: who may start runs cannot feel about in the rest of the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.contracts.errors import ConfigurationError
from services.contracts.hub import PREFIX, is_hub_name, parse_hub_data
from services.contracts.run_config import RunConfig
from services.runtime.settings import Settings


def check_inputs(config: RunConfig, settings: Settings, prefix: str = "") -> None:
    """Raise `ConfigurationError` naming the field where the model, a data file or a permission is missing.

    `prefix` is where the configuration stands in the request, for `field`.
    """
    try:
        _check_inputs(config, settings)
    except ConfigurationError as error:
        error.field = f"{prefix}{error.field}"
        raise


def _check_inputs(config: RunConfig, settings: Settings) -> None:
    if config.model.trust_remote_code and not settings.allow_remote_code:
        raise ConfigurationError(
            "model.trust_remote_code is true, but this deployment does not run code that models bring.",
            remedy="Remove it, or let the operator set TURNOUT_ALLOW_REMOTE_CODE=true.",
            field="model.trust_remote_code",
        )
    roots = settings.root_folders
    _check_model(config.model.path, roots)
    _check_data("data.train", config.data.train, roots)
    if config.data.validation is not None:
        _check_data("data.validation", config.data.validation, roots)


def _check_model(path: str, roots: Sequence[Path]) -> None:
    if is_hub_name(path) and not Path(path.split("/")[0]).exists():
        return
    folder = _path("model.path", path, roots)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigurationError(
                f"model.path is {path}, a folder without config.json.",
                remedy="Name a folder in Hugging Face format; an adapter has to be merged with its base model first.",
                field="model.path",
            )
        return
    raise ConfigurationError(
        f"model.path is {path}, but there is no such folder.",
        remedy=f"Correct it (relative folders start at {Path.cwd()}), or write a hub name as owner/name.",
        field="model.path",
    )


def _check_data(field: str, name: str, roots: Sequence[Path]) -> None:
    if name.startswith(PREFIX):
        parse_hub_data(name, field)
        return
    if not _path(field, name, roots).is_file():
        raise ConfigurationError(
            f"{field} is {name}, but there is no such file.",
            remedy=f"Correct it (relative paths start at {Path.cwd()}), or write hub:<owner>/<name>.",
            field=field,
        )


def _path(field: str, text: str, roots: Sequence[Path]) -> Path:
    if not text or "\0" in text or len(text) > 4096:
        raise ConfigurationError(f"{field} is not a path.", remedy="Name a file or folder.", field=field)
    try:
        place = Path(text).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that the system refuses
        place = Path("/")
    if not any(place.is_relative_to(root) for root in roots):
        raise ConfigurationError(
            f"{field} is {text}, which lies outside the folders that runs may use: {', '.join(map(str, roots))}.",
            remedy="Put it into one of them, or let the operator add its folder to TURNOUT_ROOTS (links are followed).",
            field=field,
        )
    return place
