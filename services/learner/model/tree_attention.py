"""Attention over a prefix tree: gathers each row's queries, keys and values by its path, then runs the causal kernel.

The rest of a model works token by token and needs no change. Rows of similar length, gathered together, need no mask,
so the fast kernels work on CPU and GPU, also with grouped queries, and no tensor of size [tokens, tokens] exists. The
price is that attention itself is computed for whole rows.

A model can share prefixes if all its layers are plain causal attention that transformers can replace. Sliding windows
and recurrent layers would see the wrong neighbours, so models with those get padded rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from services.learner.model.forward import unwrap
from services.learner.packing.prefix_tree import pack_tree
from services.learner.packing.rows import Paths
from services.runtime.logs import get_logger

log = get_logger(__name__)
NAME = "prefix_tree"
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
SHORT_ROWS = 128
"""Tokens up to which rows in bfloat16 are computed in float32 on a CPU. In such rows torch's backward kernel takes two
to three times as long for bfloat16 as for float32, and in long ones less (docs/decisions, 261)."""
COARSE_TOLERANCE = 0.03
"""Relative to the largest logit: allows for rounding (coarse in bfloat16), but not for attending to wrong tokens."""


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    paths: Paths | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers; without `paths`, plain causal attention over right-padded rows.

    Args:
        query, key, value: [1, heads, N, head size]; keys and values may have fewer heads.

    Returns:
        [1, N, heads, head size].
    """
    if paths is None:
        return _attend(module, [query, key, value], attention_mask, options), None
    rows = []
    for bucket in paths.buckets:
        whole = [_gather(tensor, bucket) for tensor in (query, key, value)]
        rows.append(_attend(module, whole, None, options).flatten(0, 1))
    found = rows[0] if len(rows) == 1 else torch.cat(rows)
    return found.index_select(0, paths.back)[None], None


def _attend(module: nn.Module, rows: list[Tensor], mask: Tensor | None, options: dict[str, Any]) -> Tensor:
    """Query, key and value [rows, heads, longest, size] -> [rows, longest, heads, size], in the same dtype."""
    dtype, device, longest = rows[0].dtype, rows[0].device, rows[0].shape[2]
    if dtype == torch.bfloat16 and device.type == "cpu" and mask is None and longest <= SHORT_ROWS:
        rows = [tensor.float() for tensor in rows]
    found: Tensor = sdpa_attention_forward(module, *rows, mask, **options)[0]
    return found.to(dtype)


def _gather(tensor: Tensor, bucket: Tensor) -> Tensor:
    """[1, heads, N, size] at the tokens [rows, longest] -> [rows, heads, longest, size]."""
    _, num_heads, num_tokens, size = tensor.shape
    by_token = tensor.transpose(1, 2).reshape(num_tokens, num_heads * size)
    return by_token.index_select(0, bucket.flatten()).view(*bucket.shape, num_heads, size).transpose(1, 2)


AttentionInterface.register(NAME, tree_attention)


def share_prefixes(model: nn.Module) -> bool:
    """Make `model` (Hugging Face, whole, not yet wrapped) share prefixes if it can. Returns whether it does; logs the
    reason if it does not."""
    reason = _obstacle(model)
    if reason is not None:
        log.info("prefix sharing off", reason=reason)
    return reason is None


def shares_prefixes(model: nn.Module) -> bool:
    """Whether passes of `model`, wrapped or not, take prefix trees."""
    return bool(unwrap(model).config._attn_implementation == NAME)


def _obstacle(model: Any) -> str | None:
    config = model.config
    if not getattr(model, "_supports_attention_backend", False) or config._attn_implementation != "sdpa":
        return "the model's attention cannot be replaced"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not hasattr(config, "layer_types") and getattr(config, "sliding_window", None):
        kinds.add("sliding_attention")
    if kinds != {"full_attention"}:
        return f"the model has layers of type {', '.join(sorted(kinds - {'full_attention'}))}"
    model.set_attn_implementation(NAME)
    if _is_exact(model):
        return None
    model.set_attn_implementation("sdpa")
    return "the model's output for a prefix tree differs from its output for single rows"


@torch.no_grad()
def _is_exact(model: Any) -> bool:
    """Compare the logits of two short rows with a common first token, computed as a tree and separately."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    rows = [[1, 2, 3, 4], [1, 5, 6, 7, 8]]
    tree = pack_tree([row[:1] for row in rows], [[*row[1:], 0] for row in rows], [0, 4], device)
    found = model(input_ids=tree.input_ids, position_ids=tree.position_ids, paths=tree.paths, use_cache=False)
    alone = [model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0] for row in rows]
    model.train(training)
    expected = torch.cat(alone).float()
    difference = (found.logits[0].index_select(0, tree.positions).float() - expected).abs().max()
    tolerance = TOLERANCES.get(alone[0].dtype, COARSE_TOLERANCE)
    return bool(difference <= tolerance * expected.abs().max())
