"""What to say of a run configuration that is valid but perhaps not what was meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.contracts.objectives.registry import OBJECTIVES, PRESETS
from services.contracts.run_config import RunConfig

DEFAULT_NAME: Final = "srpo"


def notices(config: Mapping[str, Any]) -> list[str]:
    """Sentences on a whole configuration, as `RunConfig.model_dump` gives it; each ends with what to do."""
    return [*_lent_settings(config), *_thoughts_are_judged(config)]


def _lent_settings(config: Mapping[str, Any]) -> Iterator[str]:
    """An objective that runs with the learning rate and the like of another one, because the defaults are SRPO's and
    only a preset changes them."""
    name, preset = config["objective"]["name"], config.get("preset") or ""
    own = next(iter(OBJECTIVES[name].presets), None) if name in OBJECTIVES else None
    lender = PRESETS[preset]["objective"]["name"] if preset in PRESETS else DEFAULT_NAME
    if own is None or lender == name:
        return
    fields = [f"{field} {_text(value)} ({own}: {_text(wanted)})" for field, value, wanted in _borrowed(config, own)]
    if fields:
        yield (
            f"objective.name is {name}, but these settings are the ones for {lender}: {', '.join(fields)}. "
            f"Set `preset: {own}`; fields in the file take precedence."
        )


def _thoughts_are_judged(config: Mapping[str, Any]) -> Iterator[str]:
    """Thinking that is on, but not told from answers."""
    model = config["model"]
    if model.get("chat_template_kwargs", {}).get("enable_thinking") and model.get("thinking") is None:
        yield (
            "model.chat_template_kwargs.enable_thinking is true, but model.thinking is null, so rewards read the "
            "reasoning as well. Set `model.thinking: {}` (docs/thinking.md)."
        )


def _borrowed(config: Mapping[str, Any], own: str) -> Iterator[tuple[str, Any, Any]]:
    """Fields, with value and the value of preset `own`, that are as another objective's settings left them."""
    lent = PRESETS.get(config.get("preset") or "", {})
    for section, values in PRESETS[own].items():
        defaults: Any = RunConfig.model_fields[section].annotation
        for field, wanted in values.items():
            left = lent.get(section, {}).get(field, defaults.model_fields[field].default)
            value = config[section].get(field, left)
            if field != "name" and value == left != wanted and _effective(config, field, value) != wanted:
                yield f"{section}.{field}", value, wanted


def _effective(config: Mapping[str, Any], field: str, value: Any) -> Any:
    """The value that a null stands for."""
    return config["training"]["prompts_per_step"] if field == "prompts_per_minibatch" and value is None else value


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
