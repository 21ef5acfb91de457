"""Size of a block of the KV cache on a CPU.

Only whole blocks are shared: with vLLM's 128 tokens, eight rollouts of a prompt of 100 tokens compute it eight times
(docs/decisions, 260).
"""

from __future__ import annotations

import logging

SMALL = 16
LEAST_OF_VLLM = 32


def block_tokens(dtype: str) -> int:
    """The fewest tokens in a block with which this processor's attention kernel is at its fastest. `dtype` is that of
    the model."""
    import torch
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    # Kernels for other processors, and for AMX, need blocks of 32.
    return SMALL if _get_attn_isa(getattr(torch, dtype), LEAST_OF_VLLM) == "vec" else LEAST_OF_VLLM


def allow(num_tokens: int) -> None:
    """Let vLLM accept blocks of so many tokens, for which its kernel is made although it asks for 32. Processes forked
    from this one accept them, too."""
    from vllm.v1.attention.backend import MultipleOf
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    def sizes(kv_cache_spec: object = None) -> list[int | MultipleOf]:
        return [MultipleOf(num_tokens)]

    CPUAttentionBackend.get_supported_kernel_block_sizes = staticmethod(sizes)
    logging.getLogger("vllm.platforms.cpu").addFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    """vLLM advises multiples of 32."""
    return "multiples of 32" not in record.getMessage()
