"""Exports AdamW's state from DeepSpeed, and imports it, as whole tensors by parameter name.

DeepSpeed's own checkpoints are pickles, one per rank. Whole tensors can be read and checked, and let a run continue
with another number of ranks or another ZeRO stage.

| stage | where the state is |
|---|---|
| 0 | torch's AdamW, by parameter |
| 1, 2 and bf16 | flat float32 parts; DeepSpeed maps each parameter to its fragment (`_hp_mapping`) |
| 3 | flat float32 parts; `get_local_fp32_param` gives this rank's part of a parameter |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from services.learner.model.ema import part_of_whole, whole_of_parts
from services.learner.model.engine import DeepSpeedEngine

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master"
"""Float32 weights, if the passes run in another dtype."""


@torch.no_grad()
def export_state(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """`<parameter>/<exp_avg|exp_avg_sq|master>` -> float32 copy in CPU memory; empty on ranks other than 0.

    Collective. There are no moments before the first update.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in _trained(engine):
        for key in _keys(engine):
            whole = _read(engine, parameter, key)
            if engine.rank == 0:
                state[f"{name}/{key}"] = whole.detach().to("cpu", torch.float32, copy=True).contiguous()
    return state


@torch.no_grad()
def import_state(engine: DeepSpeedEngine, state: Mapping[str, Tensor], updates: int) -> None:
    """Restore what `export_state` returned after `updates` optimizer updates. Every rank passes the whole state."""
    engine.updates = updates
    if updates:
        _make_moments(engine, updates)
    for name, parameter in _trained(engine):
        for key in _keys(engine):
            value = state[f"{name}/{key}"]
            _write(engine, parameter, key, value)


@torch.no_grad()
def export_teacher(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """Parameter name -> float32 average in CPU memory; empty without a teacher and on ranks other than 0.

    Collective.
    """
    if engine.ema is None:
        return {}
    averages: dict[str, Tensor] = {}
    for name, whole in zip(engine.ema.names, engine.ema.full_averages(), strict=True):
        if engine.rank == 0:
            averages[name] = whole.to("cpu", copy=True).contiguous()
    return averages


@torch.no_grad()
def import_teacher(engine: DeepSpeedEngine, averages: Mapping[str, Tensor]) -> None:
    """Restore what `export_teacher` returned."""
    if engine.ema is not None:
        engine.ema.load_full(averages[name] for name in engine.ema.names)


def _trained(engine: DeepSpeedEngine) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)


def _keys(engine: DeepSpeedEngine) -> tuple[str, ...]:
    moments = MOMENTS if engine.updates else ()
    return moments if engine.config.model.dtype == "float32" else (*moments, MASTER)


def _read(engine: DeepSpeedEngine, parameter: Any, key: str) -> Tensor:
    optimizer_key = None if key == MASTER else key
    if engine.stage == 0:
        value: Tensor = engine.optimizer.state[parameter][key]
        return value
    if engine.stage == 3:
        part = engine.optimizer.get_local_fp32_param(parameter, optimizer_key)
        return whole_of_parts(parameter, part)
    whole: Tensor = parameter.get_full_hp_param(optimizer_key)
    return whole


def _write(engine: DeepSpeedEngine, parameter: Any, key: str, value: Tensor) -> None:
    optimizer_key = None if key == MASTER else key
    value = value.to(engine.device)
    if engine.stage == 0:
        engine.optimizer.state[parameter][key].copy_(value)
    elif engine.stage == 3:
        part = part_of_whole(parameter, value, parameter.ds_tensor.numel())
        engine.optimizer.set_local_hp_param(part, parameter, optimizer_key)
    else:
        parameter.set_full_hp_param(value, optimizer_key)


def _make_moments(engine: DeepSpeedEngine, updates: int) -> None:
    """Create the state that AdamW would create at its first update, so that it can be written to."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for flat in _flat_parameters(engine):
        # torch keeps AdamW's counter as a float32 scalar, in CPU memory unless the optimizer is fused.
        on_device = flat.device if inner.defaults.get("fused") else "cpu"
        inner.state[flat] = {
            "step": torch.tensor(float(updates), device=on_device),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
    link: Callable[[], None] | None = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


def _flat_parameters(engine: DeepSpeedEngine) -> list[Tensor]:
    """The tensors that torch's AdamW has as its parameters."""
    optimizer = engine.optimizer
    for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat"):
        flat = getattr(optimizer, name, None)
        if flat is not None:
            return list(flat)
    return [parameter for _, parameter in _trained(engine)]
