"""What to say of a run configuration that is valid but perhaps not what was meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.contracts.objectives.registry import OBJECTIVES, PRESETS
from services.contracts.run_config import RunConfig

DEFAULT_NAME: Final = "srpo"


def notices(config: Mapping[str, Any]) -> list[str]:
    """Sentences on a whole configuration, as `RunConfig.model_dump` gives it; each ends with what to do.

    One so far: an objective that runs with the learning rate and the like of another one, because the defaults are
    SRPO's and only a preset changes them.
    """
    name, preset = config["objective"]["name"], config.get("preset") or ""
    own = next(iter(OBJECTIVES[name].presets), None) if name in OBJECTIVES else None
    lender = PRESETS[preset]["objective"]["name"] if preset in PRESETS else DEFAULT_NAME
    if own is None or lender == name:
        return []
    fields = [f"{field} {_text(value)} ({own}: {_text(wanted)})" for field, value, wanted in _borrowed(config, own)]
    if not fields:
        return []
    return [
        f"objective.name is {name}, but these settings are the ones for {lender}: {', '.join(fields)}. "
        f"Set `preset: {own}`; fields that the file gives win over it."
    ]


def _borrowed(config: Mapping[str, Any], own: str) -> Iterator[tuple[str, Any, Any]]:
    """Fields, with value and the value of preset `own`, that are as another objective's settings left them."""
    lent = PRESETS.get(config.get("preset") or "", {})
    for section, values in PRESETS[own].items():
        defaults: Any = RunConfig.model_fields[section].annotation
        for field, wanted in values.items():
            left = lent.get(section, {}).get(field, defaults.model_fields[field].default)
            value = config[section].get(field, left)
            if field != "name" and value == left != wanted:
                yield f"{section}.{field}", value, wanted


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
