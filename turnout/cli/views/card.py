"""A model card from REST data: the README.md of a model or adapter that is published."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from services.contracts.hub import PREFIX, is_hub_name, parse_hub_data
from services.contracts.plain_text import in_line
from services.contracts.records import Evaluation
from turnout.cli.run_data import RunData
from turnout.cli.views.plots import Plot
from turnout.cli.views.report import headline, summary_rows, version_rows
from turnout.cli.views.tables import markdown_table

SHOWN: Final = ("reward", "entropy", "length")
"""Charts of the card, by key."""
RUN: Final = "turnout_run"
"""The field of the card's metadata that has the run's id."""


@dataclass(frozen=True, slots=True)
class Published:
    """What is published of a run."""

    step: int
    """Of the checkpoint."""
    is_adapter: bool
    base_model: str
    """Hub name or path of the model that the run started from."""
    license: str
    """Of the base model, by the hub's short names; empty if it is unknown."""


def metadata(data: RunData, published: Published) -> dict[str, Any]:
    """The fields that the hub reads from a card."""
    config = data.run.config
    fields: dict[str, Any] = {
        "library_name": "peft" if published.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["turnout", "reinforcement-learning", str(config.get("objective", {}).get("name", "srpo"))],
        RUN: data.run.id,
    }
    if is_hub_name(published.base_model):
        fields["base_model"] = published.base_model
        fields["base_model_relation"] = "adapter" if published.is_adapter else "finetune"
    if published.license:
        fields["license"] = published.license
    if names := hub_datasets(config):
        fields["datasets"] = names
    return fields


def hub_datasets(config: Mapping[str, Any]) -> list[str]:
    """Names of the hub's datasets that a run trains on."""
    train = config.get("data", {}).get("train") or []
    sources = [train] if isinstance(train, str) else train
    paths = [source if isinstance(source, str) else str(source.get("path", "")) for source in sources]
    return sorted({parse_hub_data(path)[0] for path in paths if path.startswith(PREFIX)})


def model_card(data: RunData, published: Published, plots: list[Plot]) -> str:
    """The text of README.md. Pictures are expected in `turnout/<name>.png`."""
    head = yaml.safe_dump(metadata(data, published), sort_keys=False, allow_unicode=True)
    what = "A LoRA adapter for" if published.is_adapter else "Trained from"
    parts = [
        f"---\n{head}---",
        f"# {_plain(data.run.name)}",
        f"{what} `{_plain(published.base_model)}` with Turnout (objective "
        f"{data.run.objective or 'srpo'}): the weights of step {published.step}. {_plain(headline(data))}",
        "## Evaluation",
        _evaluation(data, published.step),
        "## Training",
        markdown_table([["", ""], *([name, value] for name, value in _training(data))]),
    ]
    for plot in plots:
        parts += [f"![{plot.title}](turnout/{plot.name}.png)", f"{plot.title}. {plot.caption}"]
    parts += [
        "The whole configuration is in `turnout/configuration.json`.",
        "## Licence",
        _licence(published),
        "## Versions",
        "Of the machine that wrote this card:",
        markdown_table([["package", "version"], *([name, value] for name, value in version_rows())]),
    ]
    return "\n\n".join(parts) + "\n"


def _training(data: RunData) -> list[tuple[str, str]]:
    config = data.run.config
    train = config.get("data", {}).get("train", "-")
    rows = [("data", train if isinstance(train, str) else ", ".join(map(_source, train)))]
    optimizer, rollout = config.get("optimizer", {}), config.get("rollout", {})
    settings = [
        ("learning rate", optimizer.get("learning_rate")),
        ("rollouts per prompt", rollout.get("group_size")),
        ("prompts per step", config.get("training", {}).get("prompts_per_step")),
    ]
    return rows + summary_rows(data) + [(name, str(value)) for name, value in settings if value is not None]


def _source(source: Any) -> str:
    return source if isinstance(source, str) else str(source.get("path", source))


def _evaluation(data: RunData, step: int) -> str:
    """A table with the initial model and the published step, or the last evaluation before it."""
    rows = [["set", "weights", "avg@k", "95% interval", "pass@k", "k", "questions"]]
    for split in dict.fromkeys(item.split for item in data.evaluations):
        of_split = [item for item in data.evaluations if item.split == split and item.step <= step]
        for item in dict.fromkeys([of_split[:1][-1].step, of_split[-1].step]) if of_split else ():
            rows.append(_row(next(found for found in of_split if found.step == item)))
    if len(rows) == 1:
        return "The run was not evaluated."
    note = (
        "avg@k is the mean over questions of the share of correct samples. The interval is Wilson's over questions; it "
        "treats each as wholly right or wrong, and is therefore wider than necessary."
    )
    return f"{markdown_table(rows)}\n\n{note}"


def _row(item: Evaluation) -> list[str]:
    low, high = wilson(item.accuracy, item.num_questions)
    weights = "initial" if item.step == 0 else f"step {item.step}"
    interval = f"{low:.1%} to {high:.1%}"
    counts = [str(item.num_samples), str(item.num_questions)]
    return [item.split, weights, f"{item.accuracy:.1%}", interval, f"{item.pass_at_k:.1%}", *counts]


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95% score interval of a share of `count` (Wilson 1927). For a mean of shares it is conservative, since
    their variance is at most share * (1 - share)."""
    if count == 0:
        return 0.0, 1.0
    scale = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _licence(published: Published) -> str:
    if published.license:
        return f"The base model's licence is `{in_line(published.license)}`; it applies to these weights as well."
    return "The base model's licence is unknown here. Check it before you share the weights."


def _plain(text: str) -> str:
    """A text in one line, with HTML escaped."""
    return html.escape(in_line(text), quote=False)
