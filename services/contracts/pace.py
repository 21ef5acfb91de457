"""How long a step takes on a kind of GPU, by formulas from the run and the model's shape, without any measurement.

Training is counted in floating-point operations, sampling mostly in bytes that the GPU reads. The share of a
GPU's peaks that a program reaches is assumed: once fast, once slow. docs/sizing.md explains the formulas and what they
were compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.contracts import planner, sizing
from services.contracts.errors import ConfigurationError
from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.planner import Plan, Rates, Times
from services.contracts.run_config import RunConfig
from services.contracts.sizing import Shape

PROMPT_TOKENS: Final = 300
"""Mean length of prompts: an assumption, since times depend on it little."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of GPU, by its data sheet."""

    gib: float
    flops: float
    """Peak in bfloat16, dense, per second."""
    bandwidth: float
    """Bytes of memory per second."""


KINDS: Final[Mapping[str, Gpu]] = {
    "a100": Gpu(80, 312e12, 2.0e12),
    "h100": Gpu(80, 989e12, 3.35e12),
    "h200": Gpu(139, 989e12, 4.8e12),
    "h20": Gpu(95, 148e12, 4.0e12),
}


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the formulas cannot know."""

    computing: float
    """Share of the peak that a pass reaches, communication between ranks included."""
    reading: float
    """Share of the bandwidth that decoding reaches."""
    longest: float
    """Longest response of a step, in mean lengths."""
    routed: float
    """Share of rollouts that SRPO's teacher scores."""
    informed: float
    """Share of rollouts that the teacher of other objectives scores."""
    push_bytes: float
    """Bytes of new weights per second, written, checked and loaded."""


FAST: Final = Assumptions(computing=0.45, reading=0.7, longest=2, routed=0.05, informed=0.5, push_bytes=4e9)
SLOW: Final = Assumptions(computing=0.2, reading=0.35, longest=6, routed=0.4, informed=1.0, push_bytes=0.5e9)


def kind_of(name: str) -> Gpu:
    """The GPU of this name. Raises `ConfigurationError`."""
    if name not in KINDS:
        raise ConfigurationError(
            f"--gpu is {name[:80]}, which is not one of {', '.join(KINDS)}.",
            remedy="Use the one that is most alike, or give measured rates to `turnout runs plan`.",
        )
    return KINDS[name]


def times(plan: Plan, gpu: Gpu, response_tokens: int | None = None) -> list[Times]:
    """Seconds of a step under `FAST` and under `SLOW`."""
    return [
        planner.times(plan, rates(plan, gpu, assumed, response_tokens), response_tokens) for assumed in (FAST, SLOW)
    ]


def rates(plan: Plan, gpu: Gpu, assumed: Assumptions, response_tokens: int | None = None) -> Rates:
    """Rates as `turnout runs plan` takes them if they were measured.

    Args:
        response_tokens: mean length of the responses; `rollout.max_response_tokens` if None.
    """
    config = plan.config
    length = _length(config, response_tokens)
    responses = config.training.prompts_per_step * config.rollout.group_size
    ranks, servers = config.training.num_ranks, config.rollout.num_servers
    training = step_flops(config, plan.shape, assumed, response_tokens) / (ranks * gpu.flops * assumed.computing)
    sampling = sampling_seconds(plan, gpu, assumed, responses, response_tokens)
    return Rates(
        train_tokens=responses * length / ranks / training,
        sample_tokens=responses * length / servers / sampling,
        push_bytes=assumed.push_bytes,
    )


def step_flops(config: RunConfig, shape: Shape, assumed: Assumptions, response_tokens: int | None = None) -> float:
    """Operations of a training step's passes: scores, teacher, and forward and backward with its recomputation."""
    length, training, objective = _length(config, response_tokens), config.training, config.objective
    responses, prompt = training.prompts_per_step * config.rollout.group_size, _prompt(config)
    # A group's responses share the pass over their prompt; the teacher's prompts differ in their solutions.
    student = forward_flops(shape, training.prompts_per_step * prompt + responses * length, (prompt + length) / 2)
    read = prompt + length * (1 if objective.demonstration == "none" else 1 + objective.demonstrations)
    teacher = forward_flops(shape.teacher or shape, responses * read, read / 2)
    taught = 0.0
    if OBJECTIVES[objective.name].has_teacher:
        taught = assumed.routed if objective.name == "srpo" else assumed.informed
    scored = config.prompts_per_minibatch < training.prompts_per_step
    taught *= sizing.teacher_passes(objective)
    return student * (3 + training.gradient_checkpointing + scored) + taught * teacher


def forward_flops(shape: Shape, tokens: float, attended: float) -> float:
    """Operations of one pass without gradients: a multiplication and an addition per weight and token, and attention.

    Args:
        attended: tokens that a token attends to, on average.
    """
    weights = shape.num_parameters - (0 if shape.tied else shape.vocabulary * shape.hidden)
    return tokens * (2 * weights + 4 * shape.layers * shape.queries * attended)


def sampling_seconds(
    plan: Plan, gpu: Gpu, assumed: Assumptions, responses: int, response_tokens: int | None = None
) -> float:
    """Time to sample so many responses on all servers, the longest included.

    Each decoding step reads the weights once, and of each sequence its KV cache. With many sequences at once, a GPU of
    little computing power takes longer to compute than to read.
    """
    config, server = plan.config, plan.server
    length, prompt = _length(config, response_tokens), _prompt(config)
    own = responses / config.rollout.num_servers
    memory = plan.server_bytes or planner.usable(planner.Gpus(1, gpu.gib * sizing.GIB))
    cache = memory - server.weights - server.incoming - server.engine
    at_once = max(1.0, min(own, config.rollout.max_num_seqs, cache / (server.kv_token * (prompt + length))))
    longest = min(assumed.longest * length, config.rollout.max_response_tokens)
    steps = own * length / at_once + longest - length
    read = steps * server.weights + own * length * (prompt + length / 2) * server.kv_token
    computed = forward_flops(plan.shape, own * (prompt + length), prompt + length / 2)
    return max(read / (gpu.bandwidth * assumed.reading), computed / (gpu.flops * assumed.computing))


def _length(config: RunConfig, response_tokens: int | None) -> int:
    most = config.rollout.max_response_tokens
    return min(response_tokens or most, most)


def _prompt(config: RunConfig) -> int:
    return min(PROMPT_TOKENS, config.rollout.max_prompt_tokens)
