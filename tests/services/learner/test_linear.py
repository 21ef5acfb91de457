"""Linear layers through oneDNN give `nn.Linear`'s results, as near to exact ones as its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from services.learner.model import linear
from services.learner.model.linear import OneDnnLinear, use_onednn


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One on which oneDNN is the faster one, whatever this is."""
    monkeypatch.setattr(linear, "is_faster", lambda: True)


def gradients(layer: nn.Module, value: Tensor, weights: Tensor) -> list[Tensor]:
    """Of a loss over the layer's outputs: by the input and by each parameter that learns."""
    value = value.clone().requires_grad_()
    found = [value, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    return list(torch.autograd.grad((layer(value) * weights).sum(), found))


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (3, 7, 24), (1, 1, 24)])
def test_outputs_and_gradients_are_as_exact_as_torchs(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.Linear(24, 40, bias=has_bias)
    ours, exact = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    use_onednn(ours)
    assert type(ours) is OneDnnLinear
    value, weights = torch.randn(shape), torch.randn(*shape[:-1], 40)
    pairs = [(ours(value), theirs(value), exact(value.double()))]
    pairs += zip(
        gradients(ours, value, weights),
        gradients(theirs, value, weights),
        gradients(exact, value.double(), weights.double()),
        strict=True,
    )
    for found, plain, right in pairs:
        assert found.shape == plain.shape
        assert error(found, right) <= 4 * error(plain, right) + 1e-7


def test_strided_inputs_are_read_as_they_are() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    value = torch.randn(16, 6, 5).permute(2, 1, 0)
    expected = layer(value)
    use_onednn(layer)
    torch.testing.assert_close(layer(value), expected)


def test_frozen_and_tied_weights() -> None:
    """As with an adapter's base, and with an LM head that is the embedding."""
    embedding, head = nn.Embedding(30, 12), nn.Linear(12, 30, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "head": head})
    tokens = torch.arange(9)

    def gradient() -> Tensor:
        (found,) = torch.autograd.grad(head(embedding(tokens)).logsumexp(-1).sum(), [embedding.weight])
        return found

    expected = gradient()
    use_onednn(model)
    assert head.weight is embedding.weight
    torch.testing.assert_close(gradient(), expected)
    head.weight.requires_grad_(False)
    value = torch.randn(4, 12, requires_grad=True)
    head(value).sum().backward()
    assert value.grad is not None
    assert head.weight.grad is None


def test_what_onednn_cannot_do_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("computed with oneDNN")

    monkeypatch.setattr(linear, "product", refuse)
    layer = nn.Linear(6, 4)
    use_onednn(layer)
    with pytest.raises(AssertionError, match="oneDNN"):
        layer(torch.ones(2, 6))
    layer(torch.ones(0, 6))
    with torch.autocast("cpu"):
        layer(torch.ones(2, 6))
    layer.double()(torch.ones(2, 6, dtype=torch.float64))
    layer.to(torch.bfloat16)(torch.ones(2, 6, dtype=torch.bfloat16))
    layer.to("meta")(torch.ones(2, 6, dtype=torch.bfloat16, device="meta"))


def test_only_plain_layers_on_such_a_machine_change(monkeypatch: pytest.MonkeyPatch) -> None:
    class Special(nn.Linear):
        """A layer of a model's own code."""

    model = nn.Sequential(nn.Linear(4, 4), Special(4, 4))
    monkeypatch.setattr(linear, "is_faster", lambda: False)
    use_onednn(model)
    assert [type(layer) for layer in model] == [nn.Linear, Special]
    before = model.state_dict()
    monkeypatch.setattr(linear, "is_faster", lambda: True)
    use_onednn(model)
    assert [type(layer) for layer in model] == [OneDnnLinear, Special]
    assert list(model.state_dict()) == list(before)
