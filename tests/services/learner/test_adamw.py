"""AdamW in pieces against torch's."""

from __future__ import annotations

import torch

from services.learner.model.adamw import PIECE, PiecewiseAdamW

SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


def trained(kind: type[torch.optim.AdamW], started: list[torch.Tensor], num_updates: int) -> list[torch.Tensor]:
    """The parameters after some updates, and everything that the optimizer remembers of them."""
    generator = torch.Generator().manual_seed(1)
    parameters = [torch.nn.Parameter(value.clone(memory_format=torch.preserve_format)) for value in started]
    optimizer = kind(parameters, **SETTINGS)  # type: ignore[arg-type]
    for _ in range(num_updates):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    state = [optimizer.state[parameter] for parameter in parameters]
    assert all(item.keys() == {"step", "exp_avg", "exp_avg_sq"} for item in state)
    return [value.detach() for value in parameters] + [value for item in state for value in item.values()]


def test_pieces_give_what_the_whole_gives_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    started = [torch.randn(size, generator=generator) for size in ((3 * PIECE + 77,), (7, 5), (2 * PIECE,), ())]
    started.append(torch.randn((PIECE, 2), generator=generator).t())
    assert not started[-1].is_contiguous()
    whole, pieces = (trained(kind, started, 4) for kind in (torch.optim.AdamW, PiecewiseAdamW))
    assert all(map(torch.equal, whole, pieces))
    assert not torch.equal(pieces[0], started[0])


def test_no_temporary_tensor_is_larger_than_a_piece() -> None:
    parameter = torch.nn.Parameter(torch.ones(8 * PIECE))
    optimizer = PiecewiseAdamW([parameter], **SETTINGS)  # type: ignore[arg-type]
    parameter.grad = torch.ones(8 * PIECE)
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        optimizer.step()
    sizes = [event.self_cpu_memory_usage for event in profile.events()]
    assert 0 < max(sizes) <= 4 * PIECE
