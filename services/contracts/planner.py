"""`turnout runs plan`: whether a run fits a number of GPUs of one size, and the settings that make it fit.

Every combination of the five settings and the number of learner processes is sized by `sizing`, and the one that costs
least time takes the rest. One server and one learner process at least get GPUs of their own; with one GPU they share
it, at the same time or in turns (`rollout.share_gpu`). A server gets the fewest GPUs that hold the model and one
sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from services.contracts import sizing
from services.contracts.errors import ConfigurationError
from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.run_config import RunConfig, parse_run_config
from services.contracts.sizing import Learner, Server, Shape
from services.contracts.trainable import check_split
from services.contracts.transports.registry import TRANSPORTS, brings_folder

RESERVE: Final = 0.1
"""Share of a GPU's memory left for CUDA's context, NCCL's buffers and fragmentation."""
LEAST_TOKENS: Final = 1024
"""Smaller micro-batches leave a GPU idle."""
STAGE_COST: Final = (0.0, 0.0, 0.02, 0.25)
"""Time of a step that a ZeRO stage adds, as a share. This and the next five are assumptions that order the options."""
CHECKPOINTING_COST: Final = 0.33
OFFLOAD_COST: Final = 0.05
HALVING_COST: Final = 0.03
"""For each halving of `training.tokens_per_microbatch`."""
TURNS_COST: Final = 0.6
"""For sampling and training that no longer overlap, and for the states that move."""
RANK_COST: Final = 0.15
"""For each GPU that the learner takes from the rollout servers."""

POWERS: Final = (2, 4, 8, 16, 32, 64)
"""Sizes of groups that are proposed."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """The machine that is planned for."""

    count: int
    bytes: float
    """Memory of each."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured of a similar run; None: unknown."""

    train_tokens: float | None = None
    """Response tokens that one learner process trains per second."""
    sample_tokens: float | None = None
    """Response tokens that one rollout server samples per second."""
    push_bytes: float | None = None
    """Bytes of new weights per second."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run needs with its settings, or with those proposed."""

    config: RunConfig
    shape: Shape
    learner: Learner
    server: Server
    changes: Mapping[str, Any]
    """Settings proposed, by field, that differ from the run file."""
    fits: bool | None
    """Whether the settings of the run file fit; None if no GPUs are given."""
    server_bytes: float | None
    """Memory of one server: what a GPU of its own has, or what the learner leaves."""

    @property
    def slots(self) -> int | None:
        """Sequences of full length in a server's KV cache."""
        return None if self.server_bytes is None else self.server.slots(self.server_bytes)


def plan(config: RunConfig, gpus: Gpus | None = None, response_tokens: int | None = None) -> Plan:
    """What the run needs, with proposed settings if those of the file do not fit.

    Args:
        response_tokens: mean length of the responses; None: all have full length.

    Raises:
        ConfigurationError: the formulas do not cover the model, or nothing fits the GPUs; names field, value, remedy.
    """
    shape = sizing.run_shape(config)
    check_split(config.rollout.tensor_parallel_size, config.model.path, shape.shared.get)
    if gpus is None:
        return _plan(config, shape, None, {}, None, response_tokens)
    if fits(config, shape, gpus, response_tokens):
        return _plan(config, shape, gpus, {}, True, response_tokens)
    size = _server_size(config, shape, gpus)
    own = {} if size == config.rollout.tensor_parallel_size else {"rollout.tensor_parallel_size": size}
    config = with_changes(config, own)
    for changes in sorted(candidates(config, gpus), key=lambda changes: cost(config, changes)):
        changed = with_changes(config, changes)
        if fits(changed, shape, gpus, response_tokens):
            return _plan(changed, shape, gpus, own | changes, False, response_tokens)
    raise _refusal(config, shape, gpus, response_tokens)


def _plan(
    config: RunConfig,
    shape: Shape,
    gpus: Gpus | None,
    changes: Mapping[str, Any],
    fitting: bool | None,
    response_tokens: int | None,
) -> Plan:
    learner, server = sizing.learner(config, shape, response_tokens), sizing.server(config, shape)
    memory = None
    if gpus is not None:
        together = gpus.count == 1 and not config.rollout.share_gpu
        memory = usable(gpus) - (learner.total if together else 0)
    return Plan(config, shape, learner, server, changes, fitting, memory)


def usable(gpus: Gpus) -> float:
    """Bytes of a GPU that plans may use."""
    return (1 - RESERVE) * gpus.bytes


def fits(config: RunConfig, shape: Shape, gpus: Gpus, response_tokens: int | None = None) -> bool:
    """Whether learner and servers have the GPUs and the memory that they need."""
    learner, server = sizing.learner(config, shape, response_tokens).total, sizing.server(config, shape).least
    ranks, served = config.training.num_ranks, config.rollout.num_servers * config.rollout.tensor_parallel_size
    if config.rollout.share_gpu:  # in turns, so each may take all of it
        return max(learner, server) <= usable(gpus)
    if gpus.count == 1:
        return ranks == served == 1 and learner + server <= usable(gpus)
    return ranks + served <= gpus.count and max(learner, server) <= usable(gpus)


def candidates(config: RunConfig, gpus: Gpus) -> Iterator[dict[str, Any]]:
    """All combinations of settings, each with the values that differ from the run file's."""
    training, rollout = config.training, config.rollout
    least = min(LEAST_TOKENS, training.tokens_per_microbatch)
    tokens, halved = [training.tokens_per_microbatch], training.tokens_per_microbatch // 2
    while halved >= least and tokens[-1] > config.max_model_tokens - 1:
        tokens.append(halved)
        halved //= 2
    offloads = {training.offload_teacher}
    apart = config.model.lora is None or config.objective.teacher_path is not None
    if OBJECTIVES[config.objective.name].has_teacher and apart:
        offloads = {False, True}
    most = 1 if rollout.share_gpu else max(1, gpus.count - rollout.tensor_parallel_size)
    most_stage = 2 if config.model.is_quantized else 3
    turns = {config.rollout.share_gpu, gpus.count == 1 and can_take_turns(config)}
    for ranks, stage, offload, again, budget, turn in product(
        range(1, most + 1),
        range(sizing.stage(config), most_stage + 1),
        sorted(offloads),
        (False, True),
        tokens,
        sorted(turns),
    ):
        servers = max(1, (gpus.count - ranks) // rollout.tensor_parallel_size)
        if turn:
            servers = 1
        elif training.max_staleness == 0:
            servers = min(servers, training.prompts_per_step)
        wanted = {
            "training.num_ranks": (training.num_ranks, ranks),
            "training.zero_stage": (sizing.stage(config), stage),
            "training.offload_teacher": (training.offload_teacher, offload),
            "training.gradient_checkpointing": (training.gradient_checkpointing, again),
            "training.tokens_per_microbatch": (training.tokens_per_microbatch, budget),
            "rollout.num_servers": (rollout.num_servers, servers),
            "rollout.share_gpu": (rollout.share_gpu, turn),
            "training.max_staleness": (training.max_staleness, 0 if turn else training.max_staleness),
        }
        yield {field: value for field, (own, value) in wanted.items() if value != own}


def can_take_turns(config: RunConfig) -> bool:
    """Whether learner and server could use one GPU in turns, but for its number of services and the staleness, which
    are proposed with it."""
    transport = TRANSPORTS[config.weights.transport]
    return config.rollout.tensor_parallel_size == 1 and (transport is None or brings_folder(config.weights.transport))


def cost(config: RunConfig, changes: Mapping[str, Any]) -> tuple[float, int]:
    """A rough share of time that settings add, to order them; fewer changes first."""
    training = config.training
    values = training.model_dump() | {field.split(".")[1]: value for field, value in changes.items()}
    halvings = (training.tokens_per_microbatch // values["tokens_per_microbatch"]).bit_length() - 1
    share = (
        STAGE_COST[values["zero_stage"]]
        + CHECKPOINTING_COST * values["gradient_checkpointing"]
        + OFFLOAD_COST * values["offload_teacher"]
        + HALVING_COST * halvings
        + TURNS_COST * (changes.get("rollout.share_gpu", False) is True)
        + RANK_COST * abs(values["num_ranks"] - training.num_ranks)
    )
    return share, len(changes)


def with_changes(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration with other values of fields such as `training.zero_stage`."""
    values = config.model_dump(mode="json")
    for field, value in changes.items():
        section, name = field.split(".")
        values[section][name] = value
    return parse_run_config(values)


def _server_size(config: RunConfig, shape: Shape, gpus: Gpus) -> int:
    """`rollout.tensor_parallel_size`, or the next power of two with which a server has room for the model and one
    sequence. Refuses what no size makes fit."""
    own, most = config.rollout.tensor_parallel_size, max(1, gpus.count - 1)
    if own > most:
        raise ConfigurationError(
            f"rollout.tensor_parallel_size is {own}, but there are {gpus.count} GPUs (--gpus), of which the learner "
            "needs one.",
            remedy=f"Lower it to {most} or less, or plan for more GPUs.",
            field="rollout.tensor_parallel_size",
        )
    wider = [size for size in POWERS if own < size <= most and shape.splits(size)]
    sizes = {size: with_changes(config, {"rollout.tensor_parallel_size": size}) for size in (own, *wider)}
    for size, changed in sizes.items():
        if sizing.server(changed, shape).least <= usable(gpus):
            return size
    raise _server_refusal(sizes[max(sizes)], shape, gpus)


def _server_refusal(config: RunConfig, shape: Shape, gpus: Gpus) -> ConfigurationError:
    """For a model or a sequence that a server's GPUs cannot hold for sampling: no other setting changes that."""
    server, limit = sizing.server(config, shape), usable(gpus)
    size = config.rollout.tensor_parallel_size
    where = "one GPU" if size == 1 else f"each of {size} GPUs (rollout.tensor_parallel_size)"
    held = server.weights + server.incoming + server.engine
    if held > limit:
        remedies = ["more or larger GPUs", "a smaller model"]
        remedies += ["weights.transport store"] if server.incoming else []
        remedies += ["model.dtype bfloat16"] if sizing.width(config) == 4 else []
        return ConfigurationError(
            f"model.path is {config.model.path} with {billions(shape.num_parameters)} parameters, and a rollout server "
            f"needs {gib(held)} for it on {where}, but of {gib(gpus.bytes)} (--gpu-memory) {gib(limit)} are usable.",
            remedy=f"Use {', or '.join(remedies)}.",
            field="model.path",
        )
    room = int((limit - held) // server.kv_token)
    return ConfigurationError(
        f"rollout.max_response_tokens is {config.rollout.max_response_tokens} and rollout.max_prompt_tokens is "
        f"{config.rollout.max_prompt_tokens}, but the KV cache of a rollout server on a GPU of {gib(gpus.bytes)} "
        f"(--gpu-memory) has room for {room:,} tokens, less than one such sequence.",
        remedy=f"Lower the two to {room:,} tokens together, or use larger GPUs.",
        field="rollout.max_response_tokens",
    )


def _refusal(config: RunConfig, shape: Shape, gpus: Gpus, response_tokens: int | None) -> ConfigurationError:
    """Why nothing fits: the settings that need least, and what they lack."""
    options = [with_changes(config, changes) for changes in candidates(config, gpus)]

    def need(option: RunConfig) -> float:
        own = sizing.learner(option, shape, response_tokens).total
        together = gpus.count == 1 and not option.rollout.share_gpu
        return own + (sizing.server(option, shape).least if together else 0)

    least = min(options, key=need)
    found, training = sizing.learner(least, shape, response_tokens), least.training
    state = found.weights + found.optimizer + found.gradients + found.buffers + found.teacher + found.reference
    passing = found.total - state
    together = gpus.count == 1 and not least.rollout.share_gpu
    who = "learner and rollout server together need" if together else "the learner needs"
    settings = (
        f"training.num_ranks {training.num_ranks}, training.zero_stage {training.zero_stage}, "
        f"training.gradient_checkpointing {str(training.gradient_checkpointing).lower()} and "
        f"training.tokens_per_microbatch {training.tokens_per_microbatch}"
    )
    short = passing > state and passing > usable(gpus) / 2
    field = "rollout.max_response_tokens" if short else "model.path"
    value = config.rollout.max_response_tokens if short else config.model.path
    remedies = ["Use more or larger GPUs (--gpus, --gpu-memory)", "a smaller model"]
    if short:
        remedies.insert(0, "Lower rollout.max_response_tokens or training.prompts_per_minibatch")
    elif config.model.lora is None:
        remedies.insert(0, "Set model.lora")
    elif not config.model.is_quantized:
        remedies.insert(0, "Set model.lora.load_in_4bit")
    return ConfigurationError(
        f"{field} is {value}, and {who} {gib(need(least))} per GPU even with {settings}: {gib(state)} for weights, "
        f"gradients, optimizer and teacher of {billions(shape.num_parameters)} parameters{_and_teacher(shape)}, "
        f"{gib(passing)} for passes. "
        f"Of {gib(gpus.bytes)} (--gpu-memory) on {gpus.count} (--gpus), {gib(usable(gpus))} are usable.",
        remedy=f"{' or '.join(remedies)}.",
        field=field,
    )


def _and_teacher(shape: Shape) -> str:
    return "" if shape.teacher is None else f" and {billions(shape.teacher.num_parameters)} of the teacher's own"


@dataclass(frozen=True, slots=True)
class Times:
    """Rough seconds of a training step; None: no rate was given for it."""

    sample: float | None
    train: float | None
    push: float | None

    def step(self, max_staleness: int) -> float | None:
        """Without staleness the three follow one another; with it, sampling and training overlap."""
        if self.sample is None or self.train is None:
            return None
        both = self.sample + self.train if max_staleness == 0 else max(self.sample, self.train)
        return both + (self.push or 0)


def times(found: Plan, rates: Rates, response_tokens: int | None = None) -> Times:
    """Seconds by measured rates."""
    config = found.config
    length = response_tokens or config.rollout.max_response_tokens
    tokens = config.training.prompts_per_step * config.rollout.group_size * length
    size = sizing.published_bytes(config, found.shape)
    return Times(
        sample=tokens / rates.sample_tokens / config.rollout.num_servers if rates.sample_tokens else None,
        train=tokens / rates.train_tokens / config.training.num_ranks if rates.train_tokens else None,
        push=size / rates.push_bytes if rates.push_bytes else None,
    )


def gib(size: float) -> str:
    """Bytes as GiB with one decimal."""
    return f"{size / sizing.GIB:.1f} GiB"


def billions(number: int) -> str:
    """A number of parameters in words."""
    return f"{number / 1e9:.2f} billion" if number >= 10**8 else f"{number / 1e6:.2f} million"
