"""Prefix trees contain every common token once, and a model computes the same over them as over single rows."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from services.learner.model.tree_attention import SHORT_ROWS, share_prefixes, shares_prefixes, tree_attention
from services.learner.packing.prefix_tree import grow, pack_tree, plan_trees
from services.learner.packing.rows import PASS_OVERHEAD_TOKENS
from tests.services.learner.objectives.builders import tiny_model

CPU = torch.device("cpu")
Rows = list[list[int]]
rows_of_few_tokens = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=25)


def prefixes(rows: Rows) -> set[tuple[int, ...]]:
    return {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}


@settings(deadline=None)
@given(rows_of_few_tokens, st.integers(1, 60))
def test_every_row_once_within_budget_and_no_token_twice(rows: Rows, budget: int) -> None:
    tree = grow(rows)
    assert tree.num_nodes == len(prefixes(rows))
    batches = plan_trees(tree, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    sizes = [len(prefixes([rows[index] for index in batch])) for batch in batches]
    assert all(len(batch) == 1 or size <= budget for batch, size in zip(batches, sizes, strict=True))
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) <= tree.num_nodes + PASS_OVERHEAD_TOKENS * len(rows)


@settings(deadline=None)
@given(rows_of_few_tokens)
def test_paths_lead_along_the_rows_and_back(rows: Rows) -> None:
    batch = pack_tree(
        [row[:1] for row in rows], [[*row[1:], 7] for row in rows], [10 * i for i in range(len(rows))], CPU
    )
    ids, start = batch.input_ids[0], 0
    assert len(ids) == len(prefixes(rows))
    for index, row in enumerate(rows):
        path = batch.positions[start : start + len(row)]
        assert ids[path].tolist() == row
        assert batch.position_ids is not None
        assert batch.position_ids[0, path].tolist() == list(range(len(row)))
        assert batch.tokens[start : start + len(row)].tolist() == [10 * index + step for step in range(len(row))]
        start += len(row)
    assert batch.paths is not None
    attended = torch.cat([bucket.flatten() for bucket in batch.paths.buckets])
    assert attended[batch.paths.back].tolist() == list(range(len(ids)))


def test_a_group_is_cut_where_it_shares_least() -> None:
    prompts = [[1] * 20, [2] * 20]
    rows = [prompts[index % 2] + [index] * 20 for index in range(8)]
    batches = plan_trees(grow(rows), 100)
    assert sorted(sorted(batch) for batch in batches) == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize(("prompt", "least", "most"), [(200, 100, 900), (2000, 200, 4000), (9, 15, 40)])
def test_nine_tenths_of_the_computed_tokens_are_needed(prompt: int, least: int, most: int) -> None:
    rng = random.Random(0)
    rows = [
        [group] * prompt + [rng.randrange(1000) for _ in range(rng.randint(least, most))]
        for group in range(8)
        for _ in range(8)
    ]
    tree = grow(rows)
    computed = sum(grow([rows[index] for index in batch]).num_nodes for batch in plan_trees(tree, 16384))
    assert tree.num_nodes / computed >= 0.9


BORDERS = {
    "one-token-prompts": ([[4], [4], [4]], [[5, 6], [5, 7], [8]]),
    "one-token-responses": ([[1, 2, 3]] * 3, [[4], [5], [4]]),
    "groups-of-one": ([[1, 2], [3, 4, 5], [6]], [[7, 8, 9], [1], [2, 3]]),
    "prefixes-of-prefixes": ([[1], [1, 2], [1, 2, 3], [1, 2, 3]], [[2, 3, 4], [3, 4], [4, 5], [4]]),
    "the-same-twice": ([[1, 2]] * 2, [[3, 4, 5]] * 2),
    "very-unequal": ([[1, 2]] * 6, [[3], [4], [5], list(range(6, 28)) * 4, [6] * 80, [7, 8]]),
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient-checkpointing"])
@pytest.mark.parametrize("case", BORDERS)
def test_a_tree_computes_what_single_rows_compute(case: str, checkpointing: bool) -> None:
    """Logits and gradients, relative to the largest, in float32."""
    prompts, responses = BORDERS[case]
    alone, shared = tiny_model(4), tiny_model(4)
    assert share_prefixes(shared)
    if checkpointing:
        shared.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    expected = torch.cat(
        [
            alone(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            for prompt, response in zip(prompts, responses, strict=True)
        ]
    )
    batch = pack_tree(prompts, responses, [0] * len(prompts), CPU)
    logits = shared(input_ids=batch.input_ids, position_ids=batch.position_ids, paths=batch.paths).logits[0]
    found = logits.index_select(0, batch.positions)
    assert batch.input_ids.numel() == len(prefixes([p + r[:-1] for p, r in zip(prompts, responses, strict=True)]))
    assert float((found - expected).detach().abs().max()) <= 1e-5 * float(expected.detach().abs().max())
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (expected * pull).sum().backward()
    (found * pull).sum().backward()
    scale = max(float(parameter.grad.abs().max()) for parameter in alone.parameters())
    for ours, theirs in zip(shared.parameters(), alone.parameters(), strict=True):
        assert float((ours.grad - theirs.grad).abs().max()) <= 1e-5 * scale


def model_of(kind: str, **values: object) -> torch.nn.Module:
    shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    tokens = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**shape, **heads, **tokens, "initializer_range": 0.4, **values})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "phi3", "smollm3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_causal_models_share(kind: str, dtype: torch.dtype) -> None:
    model = model_of(kind).to(dtype)
    assert share_prefixes(model)
    assert shares_prefixes(model)


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("mistral", {"sliding_window": 8}, "sliding_attention"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_attention"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "conv"),
        ("stablelm", {}, "cannot be replaced"),
    ],
)
def test_other_models_keep_single_rows(
    kind: str, values: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(kind, **values)
    assert not share_prefixes(model)
    assert not shares_prefixes(model)
    assert reason in capsys.readouterr().out


def test_a_model_that_seems_suitable_but_is_not_keeps_single_rows(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(1)
    forward = model.forward
    model.forward = lambda *inputs, paths=None, **options: forward(*inputs, **options)
    assert not share_prefixes(model)
    assert not shares_prefixes(model)
    assert "differ" in capsys.readouterr().out


class Grouped(torch.nn.Module):
    """What attention functions read of a layer."""

    is_causal = True
    num_key_value_groups = 2


def attended(tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Attention of two query heads to one key head over a row, and its gradients."""
    generator, module = torch.Generator().manual_seed(0), Grouped()
    values = [torch.randn(1, heads, tokens, 32, generator=generator).bfloat16() for heads in (2, 1, 1)]
    query, key, value = leaves = [value.to(dtype).requires_grad_() for value in values]
    found, _ = tree_attention(module, query, key, value, None)
    found.float().square().sum().backward()
    return [found.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def test_short_rows_in_bfloat16_are_rounded_only_at_the_end() -> None:
    """On a CPU they are computed in float32, for which torch's kernel is faster; long ones are not."""
    rough, exact = attended(SHORT_ROWS, torch.bfloat16), attended(SHORT_ROWS, torch.float32)
    assert all(value.dtype == torch.bfloat16 for value in rough)
    assert torch.equal(rough[0], exact[0].bfloat16())
    for value, expected in zip(rough[1:], exact[1:], strict=True):  # those of a rounded output
        torch.testing.assert_close(value.float(), expected, rtol=0.02, atol=0.02)
    rough, exact = attended(SHORT_ROWS + 1, torch.bfloat16), attended(SHORT_ROWS + 1, torch.float32)
    assert not torch.equal(rough[0], exact[0].bfloat16())
