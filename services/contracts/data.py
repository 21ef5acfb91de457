"""The run configuration's section `data`: one source of questions, or several with weights and names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field, TypeAdapter, WrapValidator

from services.contracts.model import Positive, Section
from services.contracts.questions.schedule import LONGEST_PERIOD, period_of
from services.contracts.questions.source import Source, TrainSource, ValidationSet

MOST_SOURCES: Final = 16
VALIDATION: Final = "validation"
"""The split of `data.validation` if it is one source without a name."""
PoolWeight = Annotated[float, Field(ge=0, le=1000)]
S = TypeVar("S", bound=Source)


def one_or_list(kind: type[Source], *, optional: bool = False) -> Callable[[Any, Any], Any]:
    """Validates a path, a list of sections or, if `optional`, None; errors name the field of the section, not the
    alternatives."""
    adapter: TypeAdapter[Any] = TypeAdapter(tuple[kind, ...])  # type: ignore[valid-type]

    def validate(value: Any, _: Any) -> Any:
        if isinstance(value, str) or (optional and value is None):
            return value
        if isinstance(value, (list, tuple)) and not 1 <= len(value) <= MOST_SOURCES:
            raise ValueError(f"must have 1 to {MOST_SOURCES} sections, each with `path`")
        if isinstance(value, (list, tuple)):
            return adapter.validate_python(value)
        raise ValueError("must be a file, a hub name, or a list of sources with `path`")

    return validate


class CurriculumSection(Section):
    """A question belongs to a pool by its last result, and each pool has a weight. A source's prompts come from its
    pools in these proportions, as long as they have questions; among the sources, the weights of `data.train` hold."""

    unseen: Annotated[float, Field(ge=1e-3, le=1000)] = 1.0
    """Weight of questions without a result."""
    mixed: PoolWeight = 1.0
    """Weight of questions that some rollouts of the last group solved."""
    failed: PoolWeight = 0.5
    """Weight of questions that none solved."""
    solved: PoolWeight = 0.0
    """Weight of questions that all solved; 0 retires them. A pool of weight 0 serves only if the others are empty."""
    return_after_steps: Positive | None = None
    """Steps after which a retired question counts as unseen again; null: it stays retired."""


class DataSection(Section):
    train: Annotated[str | tuple[TrainSource, ...], WrapValidator(one_or_list(TrainSource))]
    """A file, `hub:<owner>/<name>[:<split>]`, or a list of sources."""
    validation: Annotated[
        str | tuple[ValidationSet, ...] | None, WrapValidator(one_or_list(ValidationSet, optional=True))
    ] = None
    """Questions for evaluations: as `train`, or a list of named sets, of which the first decides which checkpoint is
    the best. null: no evaluation."""
    max_train_questions: Positive | None = None
    """Use only the first N training questions; in a list, each source has its own `limit`."""
    shuffle: bool = True
    """Go through the questions of a source in a new random order each epoch (from `training.seed`)."""
    curriculum: CurriculumSection | None = None
    """Choose questions by their earlier results (`{}` for the defaults); null: each as often as the others."""

    def train_sources(self) -> tuple[TrainSource, ...]:
        if not isinstance(self.train, str):
            return self.train
        return (TrainSource.model_construct(path=self.train, name="train", limit=self.max_train_questions),)

    def validation_sets(self) -> tuple[ValidationSet, ...]:
        """None, one or several; the first is the main one."""
        if self.validation is None or not isinstance(self.validation, str):
            return self.validation or ()
        return (ValidationSet.model_construct(path=self.validation, name=VALIDATION),)

    def sources(self) -> Iterator[tuple[str, Source]]:
        """Field and source of all questions."""
        for field, given, sources in (
            ("data.train", self.train, self.train_sources()),
            ("data.validation", self.validation, self.validation_sets()),
        ):
            for number, source in enumerate(sources):
                yield field if isinstance(given, str) else f"{field}.{number}", source

    def files(self) -> list[tuple[str, Source]]:
        """Field and source of each that is a file."""
        return [(field, source) for field, source in self.sources() if source.path and source.is_file]

    def conflicts(self) -> Iterator[str]:
        """One sentence a combination that cannot work; it begins with the field and ends with the remedy."""
        if self.max_train_questions is not None and not isinstance(self.train, str):
            yield (
                f"data.max_train_questions is {self.max_train_questions}, but data.train is a list; set the limit of "
                "each source"
            )
        curriculum = self.curriculum
        if curriculum is not None and curriculum.solved and curriculum.return_after_steps is not None:
            yield (
                f"data.curriculum.return_after_steps is {curriculum.return_after_steps}, but data.curriculum.solved is "
                f"{curriculum.solved:g}, so no question is retired; remove one of the two"
            )
        for field, source in self.sources():
            if (conflict := source.conflict()) is not None:
                yield f"{field}.{conflict}"
        for field, sources in (("data.train", self.train_sources()), ("data.validation", self.validation_sets())):
            yield from _repeated_names(field, sources)
        weights = [source.weight for source in self.train_sources()]
        if period_of(weights) > LONGEST_PERIOD:
            shown = ", ".join(f"{weight:g}" for weight in weights)
            yield (
                f"data.train has the weights {shown}, which repeat only after more than {LONGEST_PERIOD:,} prompts; "
                "use fewer digits, for example 2 and 1"
            )


def _repeated_names(field: str, sources: tuple[Source, ...]) -> Iterator[str]:
    labels = [source.label for source in sources]
    for number, label in enumerate(labels):
        if label in labels[:number]:
            yield f"{field}.{number}.name is {label!r}, as another one's; set names that differ"


def main_split(config: Mapping[str, Any]) -> str:
    """The split whose accuracy stands for a run, from its configuration as stored: the first of `data.validation`."""
    sets = config.get("data", {}).get("validation")
    return str(sets[0]["name"]) if isinstance(sets, (list, tuple)) and sets else VALIDATION
