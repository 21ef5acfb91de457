"""Linear layers through oneDNN, on processors for which torch's own choice is slow.

On x86, torch multiplies float32 matrices with MKL. On AMD's processors MKL does not use AVX-512: 109 GFLOP/s were
measured on one core, where oneDNN reaches 252 (docs/decisions, 256). vLLM's CPU build uses oneDNN as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_VENDOR = "AuthenticAMD"


class OneDnnLinear(nn.Linear):
    """`nn.Linear` that computes with oneDNN what it can, with the same parameters and results up to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Args: input: [..., in] in float32 on a CPU, else it is computed as `nn.Linear` does. Returns [..., out]."""
        weight, bias = self.weight, self.bias
        plain = type(input) is Tensor and type(weight) in (nn.Parameter, Tensor)
        if (
            not plain
            or input.device.type != "cpu"
            or not input.dtype == weight.dtype == torch.float32
            or input.numel() == 0
            or hasattr(weight, "ds_id")  # ZeRO-3 partitions it
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input)
        found: Tensor = _Product.apply(input, weight, bias)
        return found


class _Product(torch.autograd.Function):
    """input [..., in], weight [out, in] and bias [out] or None to [..., out]."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return product(input, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            product(gradient, weight.t(), None) if needs_input else None,
            product(rows.t(), input.reshape(-1, input.shape[-1]).t(), None) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """input [..., in] times the transpose of weight [out, in], plus bias [out]. No gradient."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return found


def is_faster() -> bool:
    """Whether this machine has a processor on which oneDNN beats torch's own choice, and a torch that has oneDNN."""
    try:
        processors = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    has_op = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_op and _VENDOR in processors and torch.backends.cpu.get_cpu_capability() == "AVX512"


def use_onednn(model: nn.Module) -> None:
    """Let the model's plain linear layers compute with oneDNN where that is faster."""
    if not is_faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
