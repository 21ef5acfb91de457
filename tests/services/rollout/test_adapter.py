"""Merging a published adapter with the base model's files, without an engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.rollout.weights.lora import holds_adapter, merged_tensors
from services.runtime.weights.store import CorruptWeightsError
from tests.services.rollout.models import make_adapted, make_model


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    make_adapted(3).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("shard_size", ["5GB", "60KB"], ids=["one-file", "shards-with-index"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_merge_equals_pefts(tmp_path: Path, adapter: Path, shard_size: str, dtype: torch.dtype) -> None:
    """In bfloat16 the base is rounded as in the learner, and the sum once more: half a unit in the last place."""
    make_model(0).save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "60KB")
    found = dict(merged_tensors(adapter, str(tmp_path), dtype))
    expected = make_adapted(3)
    base = expected.get_base_model()
    for name, weight in base.named_parameters():
        if "lora_" not in name and ".base_layer" in name:
            weight.data = weight.to(dtype).float()
    merged = expected.merge_and_unload().state_dict()
    assert found.keys() == merged.keys() - {"lm_head.weight"}
    changed = [name for name in found if name.endswith(("q_proj.weight", "v_proj.weight", "down_proj.weight"))]
    assert len(changed) == 6
    for name in changed:
        assert found[name].dtype == dtype
        assert torch.allclose(
            found[name].float(), merged[name], rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=1e-6
        )
    plain = make_model(0).state_dict()
    for name in found.keys() - set(changed):
        assert torch.equal(found[name], plain[name])


def test_an_unfit_adapter_is_named_before_anything_is_read(tmp_path: Path, adapter: Path) -> None:
    assert holds_adapter(adapter)
    assert not holds_adapter(tmp_path)
    with pytest.raises(CorruptWeightsError, match="no safetensors files"):
        merged_tensors(adapter, str(tmp_path), torch.float32)
    model = make_model(0)
    model.model.layers[0].mlp.down_proj = torch.nn.Linear(7, 64, bias=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(CorruptWeightsError, match=r"layers\.0\.mlp\.down_proj\.weight"):
        merged_tensors(adapter, str(tmp_path), torch.float32)
