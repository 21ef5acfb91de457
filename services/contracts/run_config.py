"""The run configuration: one model for run files (YAML), REST bodies and the generated reference page.

Values are checked field by field, then against each other (`RunConfig.cross_check`). Defaults are the paper's SRPO
settings (arXiv 2604.02288, table 3) unless a field says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import msgspec
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from services.contracts.chat_template import Scalar
from services.contracts.data import DataSection
from services.contracts.errors import ConfigurationError
from services.contracts.faults import Conflicts, dots, field_names, refused, sentence_of
from services.contracts.messages import MAX_SAMPLES, MAX_TOKENS, RewardPart
from services.contracts.model import Integer, ModelSection, NotNegative, Positive, Section, ThinkingSection
from services.contracts.objectives.conflicts import settings_without_use
from services.contracts.objectives.registry import OBJECTIVES, PRESETS
from services.contracts.objectives.settings import ObjectiveSettings
from services.contracts.ranges import Temperature, TopK
from services.contracts.rewards import Rewards, reward_conflicts, train_parts
from services.contracts.transports.registry import TRANSPORTS, brings_folder
from services.contracts.values import check_values

# What a message carries has the message's bounds: what is accepted here must arrive there.
NumSamples = Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
NumTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
StopString = Annotated[str, Field(min_length=1, max_length=200)]
StopToken = Annotated[int, Field(ge=0, lt=2**31)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$"
MOST_REFILLS = 20
"""Bound of `training.refill`, in steps' worth of groups. If one group in 20 teaches, the questions are the problem."""
DecayRate = Annotated[float, Field(ge=0, le=0.999999)]


if TYPE_CHECKING:
    ObjectiveName = str
    TransportName = str
else:
    ObjectiveName = Literal[tuple(OBJECTIVES)]
    TransportName = Literal[tuple(TRANSPORTS)]


def _no_single_text(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError("must be a list of texts, such as ['</answer>']")
    return value


class ObjectiveSection(ObjectiveSettings):
    name: ObjectiveName = "srpo"
    """The training objective."""


class RolloutSection(Section):
    group_size: NumSamples = 8
    """Rollouts per prompt, G."""
    temperature: Temperature = 1.0
    """Sampling temperature in training, at least 0.01."""
    top_p: Annotated[float, Field(ge=0.01, le=1)] = 1.0
    """Share of probability kept when sampling; 1 for all."""
    top_k: TopK = 0
    """Tokens kept when sampling, 2 or more; 0 for all."""
    min_p: Annotated[float, Field(ge=0, le=0.99)] = 0.0
    """Tokens kept when sampling: those with at least this share of the likeliest token's probability; 0 for all."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtracted from the logits of tokens that already occur in the response when sampling; 0 for none."""
    stop: Annotated[tuple[StopString, ...], Field(max_length=16), BeforeValidator(_no_single_text)] = ()
    """Texts that end a response, in training and evaluation. The response's tokens include the one that completes such
    a text; rewards read the response up to and including it."""
    stop_token_ids: Annotated[tuple[StopToken, ...], Field(max_length=64)] = ()
    """Tokens that end a response in addition to the model's own, in training and evaluation."""
    max_prompt_tokens: NumTokens = 2048
    """Prompts that render to more tokens are left out, and counted."""
    max_response_tokens: NumTokens = 8192
    """Responses are cut here, and counted as truncated."""
    num_servers: Positive = 1
    """Rollout servers that the run asks for; it starts with at least one."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs of one machine that share each layer of a server's model, for models that do not fit one GPU. The model's
    attention heads must be a multiple of it, and each server needs as many GPUs."""
    share_gpu: bool = False
    """The learner and its only rollout server use one GPU in turns: the engine sleeps while the learner trains, and the
    learner's states are in CPU memory while the engine samples. Needs `training.max_staleness` 0, and both services on
    one machine."""
    max_num_seqs: Positive = 256
    """Sequences that one server decodes at once."""
    kv_cache_on_update: Literal["keep", "recompute"] = "keep"
    """Responses in flight at a weight update: continue with the KV cache of the older weights, or recompute it with the
    new ones first (a forward pass over prompt and response so far). Tokens name the version that sampled them in
    either case."""


class OptimizerSection(Section):
    learning_rate: Annotated[float, Field(ge=1e-10, le=1)] = 5e-6
    """AdamW's learning rate after warm-up."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**6)] = 10
    """Training steps over which the learning rate rises linearly; all optimizer updates of a step have one rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up, to 0 at the last step for linear and cosine."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """AdamW's decoupled weight decay."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment; at 1 a moment would never see a gradient."""
    epsilon: Annotated[float, Field(ge=1e-30, le=1)] = 1e-8
    """AdamW's term that keeps the denominator from zero."""
    gradient_clip: Annotated[float, Field(ge=1e-6)] = 1.0
    """Global gradient norm is scaled down to this."""


class TrainingSection(Section):
    steps: Positive
    """Training steps: batches of `prompts_per_step` groups, each ending with published weights."""
    prompts_per_step: Positive = 32
    """Groups (prompts with all their rollouts) in one step."""
    prompts_per_minibatch: Positive | None = None
    """Groups per optimizer update; must divide `prompts_per_step`. null: the whole step is one update."""
    tokens_per_microbatch: Positive = 16384
    """Tokens computed in one forward pass, at most; a prefix that sequences share counts once, padding counts (a longer
    single sequence still goes alone)."""
    max_staleness: NotNegative = 1
    """Age in weight versions that a trained token may have. 0 is on-policy; n >= 1 overlaps sampling and training."""
    refill: NotNegative = 0
    """Groups that teach nothing (all rollouts right; or all wrong, and nothing for the teacher to read) and that a step
    may replace by new ones, at most (DAPO's dynamic sampling, arXiv 2503.14476). Then it trains on what comes. 0: none
    are replaced."""
    seed: Integer = 0
    """Seed of the question order and of the learner's random choices."""
    num_ranks: Positive = 1
    """Data-parallel learner processes (GPUs)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage; use 3 only if the model does not fit otherwise. On one rank in float32, 0 needs the least
    memory and time."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    offload_teacher: bool = False
    """Keep the teacher in CPU memory between steps."""
    offload_optimizer: bool = False
    """Keep AdamW's moments and the float32 weights in CPU memory and update them there (ZeRO-Offload): 12 bytes per
    trained parameter less on the GPU, and slower updates. Needs `zero_stage` 2 or 3."""


class EvaluationSection(Section):
    every_steps: Positive | None = 50
    """Evaluate every N steps; null: only before and after training."""
    before_training: bool = True
    """Evaluate the initial model."""
    after_training: bool = True
    """Evaluate the final model."""
    num_samples: NumSamples = 16
    """k of avg@k and pass@k."""
    temperature: Temperature = 0.6
    """Sampling temperature in evaluations; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Share of probability kept in evaluations."""
    min_p: Annotated[float, Field(ge=0, le=0.99)] = 0.0
    """Tokens kept in evaluations: those with at least this share of the likeliest token's probability; 0 for all."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtracted in evaluations from the logits of tokens that already occur in the response; 0 for none."""
    max_questions: Positive | None = None
    """Use only the first N questions of each validation set."""


class CheckpointSection(Section):
    every_steps: Positive = 10
    """Write a checkpoint every N steps, and at the end. A crash repeats at most N steps."""
    keep_last: Positive = 2
    """Newest checkpoints kept."""
    keep_best: NotNegative = 1
    """Additional checkpoints kept, those with the best validation accuracy."""


class WeightsSection(Section):
    transport: TransportName = "store"
    """How new weights reach rollout servers: from the weight store, a folder that they share with the learner; over
    HTTP from the learner if they share none (`http`); or, if they are running, from the learner's memory, through GPU
    memory on one machine (`cuda_ipc`) or over the network to other GPUs (`nccl`). If one of the last two fails, the
    server takes the store. Neither has been run on a GPU yet."""


class ProbeSection(Section):
    """Measure the task instead of training on it; `turnout runs probe` sets this section."""

    num_questions: Annotated[int, Field(ge=1, le=10_000)] = 32
    """Training questions to sample, in the order of training."""
    planned_steps: Positive
    """Steps of the run that is being considered; `training.steps` is the few that are timed."""


class RunConfig(Section):
    """One training run."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=NAME_PATTERN)]
    """A name to display; need not be unique."""
    preset: Annotated[str | None, Field(json_schema_extra={"enum": [None, *sorted(PRESETS)]})] = None
    """Start from a preset's values: `paper-srpo`, `paper-grpo` or `paper-sdpo`. Fields given here win."""
    model: ModelSection
    data: DataSection
    objective: ObjectiveSection = ObjectiveSection()
    rollout: RolloutSection = RolloutSection()
    rewards: Rewards = ()
    """Parts of the reward; empty: the row's own kind is all."""
    optimizer: OptimizerSection = OptimizerSection()
    training: TrainingSection
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    weights: WeightsSection = WeightsSection()
    probe: ProbeSection | None = None
    """null: train."""

    @model_validator(mode="before")
    @classmethod
    def apply_preset(cls, values: Any) -> Any:
        """Lay the fields given over the preset's."""
        if not isinstance(values, dict) or values.get("preset") is None:
            return values
        name = values["preset"]
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"preset {name!r} does not exist; choose one of {', '.join(sorted(PRESETS))}")
        return merge(PRESETS[name], values)

    @model_validator(mode="after")
    def cross_check(self) -> Self:
        """Refuse combinations in which a setting could not do what it says, all at once."""
        if faults := list(self._conflicts()):
            raise Conflicts(faults)
        if self.data.validation is None and self.evaluation.every_steps is not None:
            object.__setattr__(
                self,
                "evaluation",
                self.evaluation.model_copy(
                    update={"every_steps": None, "before_training": False, "after_training": False}
                ),
            )
        return self

    def _conflicts(self) -> Iterator[str]:
        """One sentence a combination that cannot work; it begins with the field and ends with the remedy."""
        training, objective, rollout = self.training, self.objective, self.rollout
        minibatch = training.prompts_per_minibatch
        if minibatch is not None and training.prompts_per_step % minibatch:
            yield (
                f"training.prompts_per_minibatch is {minibatch}, which does not divide "
                f"training.prompts_per_step ({training.prompts_per_step}); choose a divisor"
            )
        if rollout.group_size < 2 and not OBJECTIVES[objective.name].teaches_alone(objective):
            yield (
                "rollout.group_size is 1, but advantages and demonstrations need siblings; use 2 or more "
                "(1 works only with objective.name sdpo and feedback, or demonstration reference or none)"
            )
        if objective.demonstrations > max(1, rollout.group_size - 1):
            yield (
                f"objective.demonstrations is {objective.demonstrations}, but rollout.group_size is "
                f"{rollout.group_size}, so a rollout has at most {rollout.group_size - 1} siblings; lower it"
            )
        if objective.wrong_hint and rollout.group_size < 3 and objective.demonstration != "reference":
            yield (
                f"objective.wrong_hint is {objective.wrong_hint}, but rollout.group_size is {rollout.group_size}, and "
                "a rollout needs a correct and a failed sibling; use 3 or more"
            )
        if self.model.thinking is not None and self.model.thinking.open == self.model.thinking.close:
            yield f"model.thinking.close is {self.model.thinking.close!r}, as open; set markers that differ"
        if rollout.temperature == 0:
            yield "rollout.temperature is 0: greedy siblings are all alike and teach nothing; use about 1"
        for field in untaken(objective):
            yield (
                f"objective.{field} is {getattr(objective, field)}, but objective.name {objective.name} does not take "
                "it; remove it"
            )
        yield from settings_without_use(objective)
        yield from self._model_conflicts()
        if training.max_staleness == 0 and rollout.num_servers > training.prompts_per_step:
            yield (
                f"rollout.num_servers is {rollout.num_servers}, more than training.prompts_per_step "
                f"({training.prompts_per_step}); the rest would never work: lower it"
            )
        if rollout.share_gpu:
            yield from self._sharing_conflicts()
        yield from self._choice_conflicts()
        yield from self.data.conflicts()
        yield from reward_conflicts(
            self.rewards, rollout.max_response_tokens, separates_thinking=self.model.thinking is not None
        )
        every = self.evaluation.every_steps
        if self.data.validation is None and every is not None and "every_steps" in self.evaluation.model_fields_set:
            yield f"evaluation.every_steps is {every}, but there are no questions; add data.validation or remove it"

    def _model_conflicts(self) -> Iterator[str]:
        """What adapters, 4 bits and offloading rule out."""
        training, lora, quantized = self.training, self.model.lora, self.model.is_quantized
        if lora is not None and training.offload_teacher and self.objective.teacher_path is None:
            yield (
                "training.offload_teacher has no use with model.lora, whose self-teacher is an adapter on the "
                "student's own frozen weights; remove it"
            )
        if training.offload_optimizer and training.zero_stage < 2:
            yield (
                f"training.offload_optimizer is true, but training.zero_stage is {training.zero_stage}, and it needs "
                "stage 2 or 3; set training.zero_stage to 2 (it works on one rank, too)"
            )
        transport = self.weights.transport
        if quantized and training.zero_stage == 3:
            yield (
                "model.lora.load_in_4bit is true, but training.zero_stage is 3, which cannot divide weights in 4 bits "
                "among ranks; use 2"
            )
        fast = TRANSPORTS[transport] is not None and not brings_folder(transport)
        if lora is not None and fast and not quantized:
            yield (
                f"weights.transport {transport} has no use with model.lora: adapters are small and "
                "go by the store; remove it"
            )

    def _sharing_conflicts(self) -> Iterator[str]:
        """What one GPU in turns rules out."""
        training, rollout, transport = self.training, self.rollout, self.weights.transport
        if training.max_staleness:
            yield (
                f"rollout.share_gpu is true, but training.max_staleness is {training.max_staleness}, so sampling and "
                "training would overlap; set training.max_staleness to 0"
            )
        for field, value in (
            ("training.num_ranks", training.num_ranks),
            ("rollout.num_servers", rollout.num_servers),
            ("rollout.tensor_parallel_size", rollout.tensor_parallel_size),
        ):
            if value > 1:
                yield (
                    f"rollout.share_gpu is true, but {field} is {value}, and only one learner process and one rollout "
                    f"server can take turns on a GPU; set {field} to 1"
                )
        if TRANSPORTS[transport] is not None and not brings_folder(transport):
            yield (
                f"rollout.share_gpu is true, but weights.transport is {transport}, which needs the memory of learner "
                "and engine at the same time; use store"
            )

    def _choice_conflicts(self) -> Iterator[str]:
        """Those of the settings that choose what is trained by its results."""
        training = self.training
        if training.refill > MOST_REFILLS * training.prompts_per_step:
            yield (
                f"training.refill is {training.refill}, so a step could sample more than {MOST_REFILLS} times its "
                f"training.prompts_per_step ({training.prompts_per_step}); lower it, and use questions that "
                "the model solves sometimes"
            )
        rest = self.data.curriculum.return_after_steps if self.data.curriculum is not None else None
        steps = training.steps if self.probe is None else self.probe.planned_steps
        if rest is not None and rest >= steps:
            yield (
                f"data.curriculum.return_after_steps is {rest}, but training.steps is {steps}, so no question returns; "
                "lower it or remove it"
            )

    def train_parts(self) -> tuple[RewardPart, ...] | msgspec.UnsetType:
        """The parts of the reward as training tasks carry them; unset if a row's kind is all."""
        return train_parts(self.rewards, self.objective.success_threshold, self.rollout.max_response_tokens)

    @property
    def prompts_per_minibatch(self) -> int:
        """Groups per optimizer update, with the default filled in."""
        return self.training.prompts_per_minibatch or self.training.prompts_per_step

    @property
    def teacher_chat_template_kwargs(self) -> Mapping[str, Scalar]:
        """The chat template's arguments for the self-teacher's prompt."""
        own = self.objective.teacher_chat_template_kwargs
        return self.model.chat_template_kwargs if own is None else own

    @property
    def thinking_markers(self) -> tuple[str, str]:
        """What the model writes before and after its reasoning."""
        section = self.model.thinking or ThinkingSection()
        return section.open, section.close

    @property
    def max_model_tokens(self) -> int:
        """Longest sequence that the rollout engine must hold: prompt and response."""
        return self.rollout.max_prompt_tokens + self.rollout.max_response_tokens


def untaken(section: ObjectiveSettings) -> list[str]:
    """Fields that differ from their defaults though the section's objective does not take them."""
    takes = OBJECTIVES[section.name].takes
    fields = ObjectiveSettings.model_fields.items()
    return [name for name, field in fields if name not in takes and getattr(section, name) != field.default]


def without_untaken(values: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    """A stored configuration without fields that objective `name` (by default its own) does not take: another objective
    had a use for them, or the run was accepted when they were not yet refused and had no effect."""
    section = values.get("objective")
    if not isinstance(section, dict) or (chosen := OBJECTIVES.get(str(name or section.get("name")))) is None:
        return dict(values)
    return {**values, "objective": {key: value for key, value in section.items() if key in chosen.takes}}


def sentence(item: Any, skip: int = 0) -> str:
    """What one of pydantic's errors says of a run, without the first `skip` parts of the field's place."""
    return sentence_of(item, dots(item["loc"][skip:]), field_names(RunConfig))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, section by section."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def parse_run_config(values: Any) -> RunConfig:
    """The checked configuration of a parsed YAML file or JSON body.

    Raises:
        ConfigurationError: names each wrong field, the value found and what is asked for.
    """
    check_values(values)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise refused(error, "run configuration", "configuration", sentence) from error


def read_run_config(text: bytes | str) -> RunConfig:
    """The checked configuration of a JSON text, as stored under `streams.config`.

    Raises:
        ConfigurationError: as `parse_run_config`, or it is no JSON.
    """
    try:
        values = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"The run's configuration is not JSON: {error}.", remedy="Start the run again."
        ) from error
    return stored_run_config(values)


def stored_run_config(values: Any) -> RunConfig:
    """The checked configuration of stored values, which an earlier version may have accepted by other rules.

    Raises:
        ConfigurationError: as `parse_run_config`.
    """
    return parse_run_config(without_untaken(values) if isinstance(values, dict) else values)
