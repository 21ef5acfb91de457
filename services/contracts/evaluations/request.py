"""What an evaluation is asked to do: which weights, on which sets, sampled how (docs/evaluations.md).

The sections are those of a run file, so a run file's part is an evaluation, and a run's configuration says how a
checkpoint of it is evaluated unless the request says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, WrapValidator, model_validator

from services.contracts.data import one_or_list
from services.contracts.errors import ConfigurationError
from services.contracts.faults import Conflicts, dots, field_names, refused, sentence_of
from services.contracts.model import Integer, ModelSection, NotNegative, Section
from services.contracts.questions.source import ValidationSet
from services.contracts.rewards import LENGTH, Rewards
from services.contracts.run_config import (
    NAME_PATTERN,
    EvaluationSection,
    RolloutSection,
    RunConfig,
    merge,
    parse_run_config,
    without_untaken,
)
from services.contracts.values import check_values

OF_PROMPTS = frozenset({"chat_template_kwargs", "thinking"})
"""Fields of a model that say how it is asked and read; an evaluation of a run may have other ones than the run."""
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class EvaluatedData(Section):
    validation: Annotated[
        str | tuple[ValidationSet, ...] | None, WrapValidator(one_or_list(ValidationSet, optional=True))
    ] = None
    """One file or hub dataset, or a list of named sets as in a run file. null: those of `run`."""


class EvaluatedModel(ModelSection):
    path: str = ""
    """Folder or hub name; not given if `run` is, whose model is evaluated."""


class EvaluationRequest(Section):
    """An evaluation of one model, or of one weight version of a run."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=NAME_PATTERN)] | None = None
    """A name to display; null: one that follows from what is evaluated."""
    run: RunId | None = None
    """Evaluate a checkpoint or published version of this run or fork."""
    step: NotNegative | None = None
    """Step of `run` whose weights are evaluated; null: the newest that is on disk. 0: the model that it started
    from."""
    model: EvaluatedModel | None = None
    """Evaluate this folder or hub name, instead of a run. With `run`, only `chat_template_kwargs` and `thinking` may be
    given: they are laid over those of the run."""
    seed: Integer = 0
    """Seed of the samples. Evaluations of the same weights with the same seed and settings have the same results."""
    data: EvaluatedData = EvaluatedData()
    rollout: RolloutSection = RolloutSection()
    """Limits of prompts and responses as in a run file. Fields that are not given are those of `run`, or defaults. What
    concerns training only has no effect."""
    rewards: Rewards = ()
    """Parts of the reward that decide what is correct, as in a run file; empty: those of `run`, or each row's kind."""
    evaluation: EvaluationSection = EvaluationSection()
    """Samples, temperature and limit of sets that have none of their own; otherwise as `rollout`."""

    @model_validator(mode="after")
    def cross_check(self) -> Self:
        if faults := list(self._conflicts()):
            raise Conflicts(faults)
        return self

    def _conflicts(self) -> Iterator[str]:
        if self.run is None and not (self.model and self.model.path):
            yield "run and model.path are missing; name a run, or a model"
        if self.run is not None and self.model is not None:
            for name in sorted(self.model.model_fields_set - OF_PROMPTS):
                yield (
                    f"run is {self.run}, whose model is evaluated, but model.{name} is given, too; remove one of them "
                    f"(of the model, only {' and '.join(sorted(OF_PROMPTS))} go with a run)"
                )
        if self.step is not None and self.run is None:
            yield f"step is {self.step}, but there is no run; remove it, or name the run"
        if self.model is not None and self.model.lora is not None:
            yield "model.lora is a setting of training; remove it, or name the run that trained the adapter"
        if self.run is None and self.data.validation is None:
            yield "data.validation is missing; name a file, a hub dataset or a list of sets"


def parse_request(values: Any) -> EvaluationRequest:
    """The checked request of a parsed YAML file or JSON body.

    Raises:
        ConfigurationError: names each wrong field, the value found and what is asked for.
    """
    check_values(values)
    try:
        return EvaluationRequest.model_validate(values)
    except ValidationError as error:
        raise refused(error, "evaluation", "evaluations", _sentence) from error


def _sentence(item: Any) -> str:
    return sentence_of(item, dots(item["loc"]), field_names(EvaluationRequest))


def part_of_run_file(values: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation of a run file's model on its sets: the sections that an evaluation has."""
    kept = {key: value for key, value in values.items() if key in ("name", "model", "rollout", "rewards", "evaluation")}
    if isinstance(model := kept.get("model"), dict):
        kept["model"] = {key: value for key, value in model.items() if key != "lora"}
    data = values.get("data")
    return {**kept, "data": {"validation": data.get("validation")}} if isinstance(data, dict) else kept


def services_config(request: EvaluationRequest, run: Mapping[str, Any] | None, model: str | None = None) -> RunConfig:
    """The configuration with which rollout servers and verifiers serve an evaluation, as they serve a run.

    Args:
        run: the configuration of the evaluated run as it is stored; None if a model is evaluated.
        model: folder of the evaluated weights, if they are another model than the run's.

    Raises:
        ConfigurationError: the run has no validation sets, or the settings do not fit together.
    """
    given = request.model_dump(mode="json", exclude_unset=True)
    base: dict[str, Any] = without_untaken(run) if run is not None else {"model": given["model"]}
    sets = given.get("data", {}).get("validation") or base.get("data", {}).get("validation")
    if not sets:
        raise ConfigurationError(
            f"Run {request.run} has no validation questions.",
            remedy="Name a file, a hub dataset or a list of sets in data.validation.",
            field="data.validation",
        )
    values = merge(base, {section: given.get(section) or {} for section in ("model", "rollout", "evaluation")})
    values = merge(values, {"name": request.name or "evaluation", "training": {"steps": 1, "seed": request.seed}})
    values["rollout"] |= {"num_servers": 1, "share_gpu": False}
    rewards = given.get("rewards") or base.get("rewards") or ()
    values["rewards"] = [part for part in rewards if part["kind"] != LENGTH]  # whose limit may be above this one's
    # Nothing is trained, but a run has training questions.
    values["data"] = {"train": sets if isinstance(sets, str) else sets[0]["path"], "validation": sets}
    values["weights"], values["probe"] = {}, None
    values["model"] = {**values["model"], "lora": None}  # nothing is trained
    if model is not None:
        values["model"]["path"] = model
    return parse_run_config(values)
