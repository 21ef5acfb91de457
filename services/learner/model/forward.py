"""Forward passes that never materialize the logits of all positions.

The model is always called as a whole, so that the hooks of DeepSpeed, PEFT and gradient checkpointing run. During the
pass, however, its LM head runs our *job* instead: the job gets the hidden states of all positions, selects the response
positions, and processes them in chunks. Each chunk's loss is differentiated while its logits exist, so the backward
pass needs neither logits nor recomputation; only the gradients to the hidden states [n, hidden] and to the head's
weights are kept. The head is called once per pass, so its weights are gathered once per pass under ZeRO-3.

Limits: the model must be a Hugging Face causal LM whose logits are the head's plain output (`check_model` rejects
soft-capping and scaling), and backward can run only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from services.contracts.trainable import check_logits
from services.learner.packing.rows import PackedBatch

CHUNK_LOGITS = 2**25
"""Largest number of logits in one chunk (128 MiB in float32)."""

Project = Callable[[Tensor], Tensor]
Job = Callable[[Project, Tensor], Tensor]
ChunkLoss = Callable[[Tensor, slice], Tensor]


def unwrap(model: nn.Module) -> Any:
    """The Hugging Face model inside a DeepSpeed or data-parallel wrapper, whose `config` is not the model's."""
    return getattr(model, "module", model)


def vocabulary_size(model: nn.Module) -> int:
    """Number of logits per token."""
    return int(unwrap(model).config.vocab_size)


def check_model(model: nn.Module, field: str = "model.path") -> None:
    """Raise `ConfigurationError` for models whose logits are more than the head's plain output; `field` names it."""
    config = unwrap(model).config
    check_logits(lambda name: getattr(config, name, None), field)


def output_head(model: nn.Module) -> nn.Module:
    """The module that maps hidden states to logits."""
    head: nn.Module = unwrap(model).get_output_embeddings()
    return head


def run_with_job(model: nn.Module, batch: PackedBatch, job: Job) -> Tensor:
    """Call the model with its LM head running `job(project, hidden)` instead of computing logits.

    Args:
        job: gets the head's own forward and the hidden states [rows, longest, hidden]; its result is returned.
    """
    head = output_head(model)
    project = head.forward
    own = head.__dict__.get("forward")
    head.forward = lambda hidden: job(project, hidden)
    tree = {} if batch.paths is None else {"position_ids": batch.position_ids, "paths": batch.paths}
    try:
        return model(input_ids=batch.input_ids, use_cache=False, **tree).logits
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


@contextmanager
def teacher_projection(teacher: nn.Module) -> Iterator[Project]:
    """The teacher's head as a function of hidden states, with its weights gathered under ZeRO-3.

    All ranks must enter together and the same number of times.
    """
    head = output_head(teacher)
    with gathered(list(head.parameters())):
        yield head.forward


def gathered(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[object]:
    """A context in which parameters that ZeRO-3 partitions are whole, for reading; does nothing without ZeRO-3."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed  # `deepspeed.zero` is an attribute, not a module of that name

    whole: AbstractContextManager[object] = deepspeed.zero.GatheredParameters(list(parameters))
    return whole


def chunk_slices(start: int, stop: int, vocabulary: int) -> list[slice]:
    """Cut [start, stop) into slices of nearly equal length with at most `CHUNK_LOGITS` logits, at least one token."""
    count = stop - start
    if count <= 0:
        return []
    num_chunks = -(-count // max(1, CHUNK_LOGITS // vocabulary))
    size = -(-count // num_chunks)
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def select(hidden: Tensor, positions: Tensor) -> Tensor:
    """Hidden states [rows, longest, hidden] at flat positions [n] -> [n, hidden]."""
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)


def real_logits(project: Project, hidden: Tensor, temperature: float, width: int | None = None) -> Tensor:
    """Logits of the distribution that was sampled from, in float32 (or float64, if the hidden states are):
    [n, hidden] -> [n, vocabulary].

    Args:
        width: keep that number of leading logits, for a model whose vocabulary has more padding than the student's.
    """
    logits = project(hidden)
    if width is not None:
        logits = logits[..., :width]
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return logits if temperature == 1.0 else logits / temperature


def chunked_loss(head: nn.Module, hidden: Tensor, chunks: Sequence[slice], loss: ChunkLoss) -> Tensor:
    """Sum of `loss` over chunks of hidden states, as a scalar with gradients to `hidden` and the head's weights.

    Args:
        hidden: [n, hidden size].
        loss: gets `hidden[chunk]` (a leaf that requires gradients) and the chunk; returns a scalar. It calls `project`.

    Returns:
        Scalar, float32 or float64. If gradients are disabled, the same value without gradients; without chunks, zero
        gradients.
    """
    weights = [parameter for parameter in head.parameters() if parameter.requires_grad]
    if not torch.is_grad_enabled():
        total = sum((loss(hidden[chunk], chunk) for chunk in chunks), start=hidden.new_zeros((), dtype=torch.float32))
        return torch.as_tensor(total)
    return _ChunkedLoss.apply(hidden, chunks, loss, weights, *weights)


class _ChunkedLoss(torch.autograd.Function):
    """Differentiates each chunk in the forward pass; backward only scales the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        chunks: Sequence[slice],
        loss: ChunkLoss,
        weights: list[nn.Parameter],
        *_edges: Tensor,
    ) -> Tensor:
        hidden_gradient = torch.zeros_like(hidden)
        # Several chunks are summed in float32, because many small bfloat16 additions would lose precision.
        sums: list[Tensor] | None = None
        total: Tensor = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for chunk in chunks:
            with torch.enable_grad():
                part = hidden[chunk].detach().requires_grad_(True)
                value = loss(part, chunk)
            gradients = torch.autograd.grad(value, [part, *weights])
            hidden_gradient[chunk] = gradients[0]
            total = total + value.detach()
            sums = _accumulate(sums, gradients[1:], many=len(chunks) > 1)
            del gradients, value, part
        ctx.hidden_gradient = hidden_gradient
        ctx.weight_gradients = sums if sums is not None else [torch.zeros_like(weight) for weight in weights]
        ctx.weight_dtypes = [weight.dtype for weight in weights]
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        hidden_gradient, weight_gradients = ctx.hidden_gradient, ctx.weight_gradients
        del ctx.hidden_gradient, ctx.weight_gradients
        scaled = [
            gradient.mul_(scale).to(dtype) for gradient, dtype in zip(weight_gradients, ctx.weight_dtypes, strict=True)
        ]
        return (hidden_gradient.mul_(scale.to(hidden_gradient.dtype)), None, None, None, *scaled)


def _accumulate(sums: list[Tensor] | None, new: Sequence[Tensor], *, many: bool) -> list[Tensor]:
    if sums is None:
        return [gradient.float() if many and gradient.dtype != torch.float64 else gradient for gradient in new]
    for total, gradient in zip(sums, new, strict=True):
        total.add_(gradient)
    return sums
