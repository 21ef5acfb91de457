"""Finds a tracker by name: the built-in ones, and those of installed packages (entry points `turnout.trackers`)."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Final

from services.contracts.errors import ConfigurationError
from turnout.trackers.base import Tracker

ENTRY_POINTS: Final = "turnout.trackers"
BUILT_IN: Final = {
    "mlflow": "MlflowTracker",
    "tensorboard": "TensorboardTracker",
    "trackio": "TrackioTracker",
    "wandb": "WandbTracker",
}
"""Class by name. The module and the extra that installs its package have the same name."""


def names() -> list[str]:
    """Every tracker that can be named."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def load(name: str) -> type[Tracker]:
    """The class of a tracker.

    Raises:
        ConfigurationError: there is none, or its package is not installed.
    """
    if name in BUILT_IN:
        try:
            return _class(name)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"The tracker {name} needs a package that is not installed ({error.name}).",
                remedy=f"Install it with pip install 'turnout[{name}]'.",
                field="--to",
            ) from error
    for point in entry_points(group=ENTRY_POINTS, name=name):
        found: type[Tracker] = point.load()
        return found
    raise ConfigurationError(
        f"--to is {name}, but there is no such tracker.",
        remedy=f"Choose one of {', '.join(names())}, or install a package that provides it.",
        field="--to",
    )


def _class(name: str) -> type[Tracker]:
    module = importlib.import_module(f"turnout.trackers.{name}")
    found: type[Tracker] = getattr(module, BUILT_IN[name])
    return found
