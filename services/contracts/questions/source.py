"""Where questions come from: a file or a hub dataset, and how its rows become questions (docs/data.md)."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, WrapValidator, model_validator

from services.contracts.hub import PREFIX, hub_place
from services.contracts.messages import MAX_SAMPLES
from services.contracts.model import Name, Positive, Section
from services.contracts.questions.columns import parse_expression
from services.contracts.ranges import Temperature

SourceName = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
TargetField = Literal["id", "kind", "system", "prompt", "messages", "answer", "tests", "solution"]
_HUB_PART = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
_ENDING = re.compile(r"(\.(jsonl|json|csv|parquet))?(\.gz)?$", re.IGNORECASE)


def _expressions(value: Any, _: Any) -> str | tuple[str, ...]:
    parts = value if isinstance(value, (list, tuple)) else [value]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError("must be column|transform, =text, or a list of these")
    for part in parts:
        parse_expression(part)
    return value if isinstance(value, str) else tuple(parts)


def _values(value: Any, _: Any) -> Any:
    parts = value if isinstance(value, (list, tuple)) else [value]
    if not parts or not all(isinstance(part, (str, int, float)) for part in parts):
        raise ValueError("must be a text, a number, true or false, or a list of these")
    return tuple(parts) if isinstance(value, (list, tuple)) else value


Expressions = Annotated[str | tuple[str, ...], WrapValidator(_expressions)]
Scalar = str | int | float | bool
Values = Annotated[Scalar | tuple[Scalar, ...], WrapValidator(_values)]


class Source(Section):
    """A file or a hub dataset, and how its rows become questions."""

    path: str
    """File (`.jsonl`, `.json`, `.csv` or `.parquet`, each also with `.gz`), or `hub:<owner>/<name>[:<split>]`."""
    name: SourceName | None = None
    """What metrics and reports call it; null: the file's or dataset's name."""
    limit: Positive | None = None
    """Use only the first N questions."""
    configuration: _HUB_PART | None = None
    """Configuration of a hub dataset that has several."""
    split: _HUB_PART | None = None
    """Split of a hub dataset; null: `train`."""
    revision: _HUB_PART | None = None
    """Branch, tag or commit of a hub dataset; null: the newest."""
    kind: Name | None = None
    """Reward of rows that name none."""
    system: str | None = None
    """System message of rows that have none."""
    columns: dict[TargetField, Expressions] = {}
    """Where a question's fields come from, as `column|transform|transform:argument` or a list of these, whose texts are
    joined (docs/data.md). Other fields come from the columns of their own names."""
    rows: tuple[Name, ...] = ()
    """Columns with lists of equal length, each item of which is a question of its own."""
    where: dict[Name, Values] = {}
    """Use only rows in which these columns have this value, or one of these."""
    invalid_rows: Literal["refuse", "skip"] = "refuse"
    """Rows that cannot be judged: refuse the run, or leave them out and count them."""

    @model_validator(mode="after")
    def fill_in_the_name(self) -> Self:
        """Stored configurations have every name, so that readers need not know how it follows from the path."""
        if self.name is None:
            object.__setattr__(self, "name", self.label)
        return self

    @property
    def label(self) -> str:
        """The name, or by default one that follows from the path."""
        if self.name is not None:
            return self.name
        if self.path.startswith(PREFIX):
            text = self.path.removeprefix(PREFIX).partition(":")[0].rpartition("/")[2]
        else:
            text = _ENDING.sub("", PurePath(self.path).name)
        return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:60] or "questions"

    @property
    def is_file(self) -> bool:
        return not self.path.startswith(PREFIX)

    def as_json(self) -> str:
        """What decides how the rows are read, without weights and what evaluations need."""
        return self.model_dump_json(include=set(Source.model_fields))

    def place(self) -> tuple[str, str]:
        """Name and split on the hub. Raises `ConfigurationError`."""
        name, split = hub_place(self.path, "path")
        return name, split or self.split or "train"

    def conflict(self) -> str | None:
        """The field that does not fit the others, with what is wrong and the remedy."""
        if self.is_file:
            for field in ("configuration", "split", "revision"):
                if (value := getattr(self, field)) is not None:
                    return f"{field} is {value}, but {self.path[:200]} is a file, which has none; remove it"
        elif self.split is not None and ":" in self.path.removeprefix(PREFIX):
            return f"split is {self.split}, but path ({self.path[:200]}) already names a split; remove one of them"
        return None


class TrainSource(Source):
    """A source of training questions."""

    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Share of the prompts, relative to the other sources' weights; exact over time, whatever the sizes."""


class ValidationSet(Source):
    """Questions that are evaluated and reported under their own name."""

    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    """k of avg@k and pass@k; null: `evaluation.num_samples`."""
    temperature: Temperature | None = None
    """Sampling temperature; null: `evaluation.temperature`."""
    every_steps: Positive | None = None
    """Evaluate every N steps; null: `evaluation.every_steps`."""
