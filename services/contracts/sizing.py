"""How much memory a run needs, by formulas: from its configuration and the model's config.json, without torch.

Sizes are bytes on each GPU, at most, unless they say otherwise. docs/sizing.md explains the formulas. They hold for
dense models of the Llama kind under AdamW and DeepSpeed ZeRO.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from services.contracts.errors import ConfigurationError
from services.contracts.model import LoraSection
from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.objectives.settings import ObjectiveSettings
from services.contracts.run_config import RunConfig
from services.contracts.trainable import HEADING_TOKENS, divides, teacher_tokens

GIB: Final = 2**30
BUCKET: Final = 500_000_000
"""Elements that DeepSpeed reduces at once, at most (`services.learner.model.engine`)."""
LIVE: Final = 1_000_000_000
"""Parameters that DeepSpeed leaves gathered under ZeRO-3, at most: its default."""
CHUNK_LOGITS: Final = 2**25
"""Logits in memory at once, at most (`services.learner.model.forward`)."""
ENGINE_BYTES: Final = 3 * 10**9
"""vLLM's activations and CUDA graphs: an assumption, not measured."""
KV_BLOCK: Final = 16
"""Tokens in a block of vLLM's KV cache on a GPU, its default."""
LOGIT_BYTES: Final = 12
"""Float32 copies of a chunk of logits that exist at once: logits, probabilities and their product."""
TAUGHT_LOGIT_BYTES: Final = 16
"""The same of the teacher, and the student's probabilities."""
WHOLE_LOGIT_BYTES: Final = 40
"""The same if all probabilities are compared (`objective.top_k: null`)."""
TOKEN_BYTES: Final = 120
"""Numbers per response token of a mini-batch (`services.learner.update.layout`)."""
QUANTIZED_BYTES: Final = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bits with its share of scales (`services.learner.model.quantized`): one of 8 bits per block of
64, and a float32 per 256 of those."""
KINDS: Final = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})
"""`model_type` in config.json of models that the formulas cover."""
LINEAR: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Shape:
    """What config.json says of a model's size."""

    kind: str
    layers: int
    hidden: int
    middle: int
    """Width of the MLP."""
    queries: int
    """Values of all query heads of a token."""
    keys: int
    """Values of all key heads of a token; values have as many."""
    head: int
    vocabulary: int
    tied: bool
    """The LM head is the embedding."""
    biased: bool
    """Attention's linear layers have a bias."""
    teacher: Shape | None = None
    """Of the teacher in `objective.teacher_path`, if the run has one."""

    @property
    def num_linear_parameters(self) -> int:
        """Number of weights of the linear layers, without the LM head."""
        return self.layers * (2 * self.hidden * (self.queries + self.keys) + 3 * self.hidden * self.middle)

    @property
    def num_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        norms = 2 * self.hidden + (2 * self.head if self.kind == "qwen3" else 0)
        biases = 0
        if self.kind == "qwen2" or self.biased:
            biases = self.queries + 2 * self.keys + (0 if self.kind == "qwen2" else self.hidden)
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.num_linear_parameters + self.layers * (norms + biases) + self.hidden

    def num_shard_parameters(self, size: int) -> int:
        """Number of parameters on each of `size` GPUs among which vLLM shares the layers. Norms are on each, and of
        fewer key-value heads than GPUs, each is on several."""
        keys = self.shard_keys(size)
        projections = self.hidden * (2 * self.queries // size + 2 * keys) + 3 * self.hidden * self.middle // size
        whole = self.num_parameters - self.vocabulary * self.hidden * (1 if self.tied else 2)
        whole -= self.num_linear_parameters
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2) // size
        return embeddings + self.layers * projections + whole

    @property
    def shared(self) -> dict[str, int]:
        """What the GPUs of a rollout server share, by the names in config.json."""
        heads = {"num_attention_heads": self.queries // self.head, "num_key_value_heads": self.keys // self.head}
        return heads | {"intermediate_size": self.middle}

    def splits(self, size: int) -> bool:
        """Whether vLLM can share the layers among `size` GPUs."""
        return all(divides(size, name, count) for name, count in self.shared.items())

    def shard_keys(self, size: int) -> int:
        """Values of a token's key heads on each of `size` GPUs; values have as many."""
        return max(self.keys // size, self.head)

    def num_adapter_parameters(self, lora: LoraSection) -> int:
        """Number of parameters of an adapter."""
        h, q, k, m = self.hidden, self.queries, self.keys, self.middle
        ends = dict(zip(LINEAR, ((h, q), (h, k), (h, k), (q, h), (h, m), (h, m), (m, h)), strict=True))
        named = LINEAR if lora.target_modules == "all-linear" else lora.target_modules
        return self.layers * lora.rank * sum(sum(ends[name]) for name in named if name in ends)


def run_shape(config: RunConfig) -> Shape:
    """The shape of the run's model, with that of its fixed teacher. Raises `ConfigurationError` as `read_shape`."""
    shape, path = read_shape(config.model.path), config.objective.teacher_path
    return shape if path is None else replace(shape, teacher=read_shape(path, "objective.teacher_path"))


def read_shape(path: str, field: str = "model.path") -> Shape:
    """The shape of the model in folder `path`, of which only config.json is read. `field` of the run file names it.

    Raises:
        ConfigurationError: there is no such file, or the formulas do not cover the model.
    """
    try:
        values = json.loads((Path(path) / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{field} is {path}, but {Path(path) / 'config.json'} cannot be read; planning needs it.",
            remedy=f"Download the model and name its folder, for example with --set {field}=FOLDER.",
            field=field,
        ) from error
    return shape_of(values, path, field)


def shape_of(values: Any, path: str, field: str = "model.path") -> Shape:
    """The shape in a parsed config.json. Raises `ConfigurationError` as `read_shape`."""
    kind = values.get("model_type") if isinstance(values, Mapping) else None
    if kind not in KINDS:
        raise ConfigurationError(
            f"{field} is {path}, a model of type {kind}; planning covers {', '.join(sorted(KINDS))}.",
            remedy="Use docs/sizing.md as a guide, or measure a short run.",
            field=field,
        )
    try:
        heads, hidden = int(values["num_attention_heads"]), int(values["hidden_size"])
        head = int(values.get("head_dim") or hidden // heads)
        return Shape(
            kind=kind,
            layers=int(values["num_hidden_layers"]),
            hidden=hidden,
            middle=int(values["intermediate_size"]),
            queries=heads * head,
            keys=int(values.get("num_key_value_heads") or heads) * head,
            head=head,
            vocabulary=int(values["vocab_size"]),
            tied=bool(values.get("tie_word_embeddings", False)),
            biased=bool(values.get("attention_bias", False)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigurationError(
            f"{field} is {path}, whose config.json lacks {error} or has no number there.",
            remedy="Restore the model's original file.",
            field=field,
        ) from error


@dataclass(frozen=True, slots=True)
class Learner:
    """Bytes on the GPU of the rank that holds most, and in CPU memory."""

    weights: float
    optimizer: float
    """Float32 copy of the weights, and AdamW's two moments."""
    gradients: float
    buffers: float
    """DeepSpeed's."""
    teacher: float
    """Weights and float32 averages."""
    reference: float
    activations: float
    """What layers and LM head keep for the backward pass."""
    temporary: float
    """At the most demanding moment of a pass: a chunk of logits, or the backward pass of one layer."""
    teacher_states: float
    """The teacher's hidden states of a mini-batch, and numbers per token."""
    publishing: float
    cpu: float
    """In CPU memory of rank 0's machine: copies of a checkpoint and of published weights, an offloaded teacher."""

    @property
    def total(self) -> float:
        """On the GPU."""
        state = self.weights + self.optimizer + self.gradients + self.buffers + self.teacher + self.reference
        return state + self.publishing + self.activations + self.temporary + self.teacher_states


@dataclass(frozen=True, slots=True)
class Server:
    """Bytes on each GPU of one rollout server."""

    weights: float
    incoming: float
    """One more copy while new weights arrive."""
    engine: float
    kv_token: int
    """KV cache of a token."""
    sequence_tokens: int
    """Tokens of one sequence of full length, in whole blocks."""

    @property
    def least(self) -> float:
        """Without a cache for one sequence of full length, vLLM refuses to start."""
        return self.weights + self.incoming + self.engine + self.kv_token * self.sequence_tokens

    def slots(self, memory: float) -> int:
        """Sequences of full length that fit a server with so many bytes."""
        left = memory - self.weights - self.incoming - self.engine
        return max(0, int(left // (self.kv_token * self.sequence_tokens)))


def width(config: RunConfig) -> int:
    """Bytes of a value in `model.dtype`."""
    return 2 if config.model.dtype == "bfloat16" else 4


def stage(config: RunConfig) -> int:
    """The ZeRO stage that is used: in bfloat16 at least 1, since below it gradients would be summed in bfloat16."""
    return max(config.training.zero_stage, 1 if config.model.dtype == "bfloat16" else 0)


def learner(config: RunConfig, shape: Shape, response_tokens: int | None = None) -> Learner:
    """The learner's memory.

    Args:
        response_tokens: mean length of the responses; `rollout.max_response_tokens` if None.
    """
    size, lora = shape.num_parameters, config.model.lora
    trained = size if lora is None else shape.num_adapter_parameters(lora)
    total = size if lora is None else size + trained
    w, used, ranks = width(config), stage(config), config.training.num_ranks
    cut = ranks if used == 3 else 1
    weights = w * total / cut - _saved_by_quantizing(config, shape)
    optimizer = (12 / ranks if used else 8) * trained
    model, averages = _teacher(config, shape, total, trained, cut)
    referred = bool(config.objective.reference_kl_coefficient) and lora is None
    kept, passing, buffers = _gradients(config, trained)
    offloaded = _offloaded(config, trained)
    if offloaded:
        optimizer, kept = 0.0, 0.0
    offloads, taught = config.training.offload_teacher, OBJECTIVES[config.objective.name].has_teacher
    reference = w * size / cut if referred else 0
    # With `rollout.share_gpu`, in CPU memory while the engine samples. An offloaded teacher is counted already.
    resting = reference + (0 if offloads else model + averages)
    return Learner(
        weights=weights,
        optimizer=optimizer,
        gradients=kept + passing,
        buffers=buffers,
        teacher=model + (0 if offloads else averages),
        reference=reference,
        activations=activations(config, shape, response_tokens),
        temporary=temporary(config, shape, passing, response_tokens),
        teacher_states=_tokens_of_rank(config, response_tokens)
        * (TOKEN_BYTES + (w * (shape.teacher or shape).hidden * teacher_passes(config.objective) if taught else 0)),
        publishing=published_bytes(config, shape) if config.weights.transport == "cuda_ipc" else 0,
        cpu=checkpoint_bytes(config, shape)
        + published_bytes(config, shape)
        + ranks * offloaded
        + (ranks * (averages + model) if offloads else 0)
        + (weights + optimizer + kept + resting if config.rollout.share_gpu else 0),
    )


def teacher_passes(objective: ObjectiveSettings) -> int:
    """Teacher passes over a rollout that has a teacher."""
    return 2 if objective.wrong_hint else 1


def checkpoint_bytes(config: RunConfig, shape: Shape) -> float:
    """Bytes of one checkpoint: weights in bfloat16, their float32 copy, AdamW's moments, the teacher's averages."""
    lora, taught = config.model.lora, OBJECTIVES[config.objective.name].has_teacher and shape.teacher is None
    trained = shape.num_parameters if lora is None else shape.num_adapter_parameters(lora)
    whole = published_bytes(config, shape) if config.model.is_quantized else 0
    return whole + (12 + (2 if width(config) == 2 else 0) + (4 if taught else 0)) * trained


def _saved_by_quantizing(config: RunConfig, shape: Shape) -> float:
    return (width(config) - QUANTIZED_BYTES) * shape.num_linear_parameters if config.model.is_quantized else 0.0


def _teacher(config: RunConfig, shape: Shape, total: int, trained: int, cut: int) -> tuple[float, float]:
    """The teacher's weights and its averages in tensors of their own."""
    if not OBJECTIVES[config.objective.name].has_teacher:
        return 0.0, 0.0
    if shape.teacher is not None:
        return width(config) * shape.teacher.num_parameters / cut, 0.0
    if config.model.lora is not None:
        return 0.0, 4 * trained / cut
    separate = width(config) == 2 or config.training.offload_teacher
    return width(config) * total / cut, 4 * trained / cut if separate else 0.0


def _gradients(config: RunConfig, trained: int) -> tuple[float, float, float]:
    """Gradients that are always there, those during a step, and DeepSpeed's buffers."""
    w, used, ranks = width(config), stage(config), config.training.num_ranks
    bucket = w * min(trained, BUCKET)
    if used == 0:
        return 0.0, 4.0 * trained, 0.0
    if used == 1:
        return (4.0 * trained, 2.0 * trained, 0.0) if w == 2 else (0.0, 4.0 * trained, bucket)
    if used == 2:
        return 0.0, 4 * trained / ranks, bucket
    gathered = w * min(trained, LIVE) if ranks > 1 else 0.0
    return 4 * trained / ranks, 0.0, bucket + gathered


def _offloaded(config: RunConfig, trained: int) -> float:
    """What a rank keeps in CPU memory with `training.offload_optimizer`: optimizer, gradients for it, and what
    it returns (stage 2) or accumulates (stage 3)."""
    if not config.training.offload_optimizer:
        return 0.0
    return (16 + (width(config) if stage(config) == 2 else 4)) * trained / config.training.num_ranks


def pass_tokens(config: RunConfig) -> int:
    """Tokens of the largest micro-batch with gradients: the budget, or one response with its prompt if it is longer."""
    return max(config.training.tokens_per_microbatch, config.max_model_tokens - 1)


def teacher_pass_tokens(config: RunConfig) -> int:
    """Tokens of the largest teacher pass: question, solution and response, if that is more than the budget."""
    return max(config.training.tokens_per_microbatch, (teacher_tokens(config) or 0) + HEADING_TOKENS)


def attended_ratio(config: RunConfig, response_tokens: int | None = None) -> float:
    """Tokens that attention reads per token computed, 1 to 2: a shared prompt is read once per response."""
    size, prompt = config.rollout.group_size, config.rollout.max_prompt_tokens
    response = response_tokens or config.rollout.max_response_tokens
    return min(2.0, size * (prompt + response) / (prompt + size * response))


def layer_bytes(config: RunConfig, shape: Shape, attended: float = 1.0) -> float:
    """What one layer keeps per token for the backward pass."""
    h, m, q, k = shape.hidden, shape.middle, shape.queries, shape.keys
    # Norms whose weights are frozen do not keep what their weights' gradient would need.
    frozen = 0 if config.model.lora is None else width(config) * (2 * h + q + k)
    if width(config) == 2:
        return 16 * h + 8 * m + attended * (12 * q + 10 * k) - frozen
    return 24 * h + 16 * m + attended * (20 * q + 16 * k) - frozen


def activations(config: RunConfig, shape: Shape, response_tokens: int | None = None) -> float:
    """What the largest pass with gradients keeps, for every layer and for the LM head's input."""
    one = layer_bytes(config, shape, attended_ratio(config, response_tokens))
    if config.training.gradient_checkpointing:
        one = width(config) * shape.hidden
    return pass_tokens(config) * (shape.layers * one + 6 * width(config) * shape.hidden)


def temporary(config: RunConfig, shape: Shape, passing: float, response_tokens: int | None = None) -> float:
    """What exists on top of the activations, at most: of logits, of a layer's backward pass, or of a teacher pass.

    Args:
        passing: bytes of gradients during a step; in bfloat16 they are not there yet while logits are.
    """
    w, tokens = width(config), pass_tokens(config)
    again = layer_bytes(config, shape, attended_ratio(config, response_tokens))
    backward: float = w * (3 * shape.middle + 2 * shape.hidden)
    if config.training.gradient_checkpointing:  # what a recomputed layer keeps is freed as its gradients are made
        backward = again + 2 * w * shape.hidden
    head = 0.0
    if config.model.lora is None:
        many = tokens * shape.vocabulary > CHUNK_LOGITS
        head = shape.vocabulary * shape.hidden * (w + (4 if many else 0))
    late = passing if w == 2 and stage(config) == 1 else 0.0
    values = (
        w * shape.hidden * max(shape.middle, shape.queries) if config.model.is_quantized else 0
    )  # of one layer's weights
    most = max(head + logits(config, shape) - late, head + tokens * backward + values)
    if not OBJECTIVES[config.objective.name].has_teacher:
        return most
    layer = layer_bytes(config, shape.teacher or shape)
    return max(most, teacher_pass_tokens(config) * layer - activations(config, shape, response_tokens))


def logits(config: RunConfig, shape: Shape) -> float:
    """One chunk of logits, and what is computed of them."""
    chunk = min(pass_tokens(config) * shape.vocabulary, max(CHUNK_LOGITS, shape.vocabulary))
    taught = OBJECTIVES[config.objective.name].has_teacher
    whole = taught and config.objective.top_k is None
    return chunk * (WHOLE_LOGIT_BYTES if whole else TAUGHT_LOGIT_BYTES if taught else LOGIT_BYTES)


def _tokens_of_rank(config: RunConfig, response_tokens: int | None) -> float:
    """Response tokens of a mini-batch on one rank."""
    length = min(response_tokens or config.rollout.max_response_tokens, config.rollout.max_response_tokens)
    return config.prompts_per_minibatch * config.rollout.group_size * length / config.training.num_ranks


def published_bytes(config: RunConfig, shape: Shape) -> int:
    """Bytes of one published version."""
    lora = config.model.lora
    if lora is None or lora.load_in_4bit:
        return width(config) * shape.num_parameters
    return width(config) * shape.num_adapter_parameters(lora)


def server(config: RunConfig, shape: Shape) -> Server:
    """A rollout server's memory on each of its GPUs, its own or shared with the learner."""
    w, size = width(config), config.rollout.tensor_parallel_size
    return Server(
        weights=w * shape.num_shard_parameters(size),
        incoming=w * shape.num_parameters if config.weights.transport == "cuda_ipc" else 0,
        engine=ENGINE_BYTES,
        kv_token=2 * shape.layers * shape.shard_keys(size) * w,
        sequence_tokens=-(-config.max_model_tokens // KV_BLOCK) * KV_BLOCK,
    )
