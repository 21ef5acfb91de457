"""Moves all states of a training engine to CPU memory and back, for a GPU that it shares in turns.

DeepSpeed's own `offload_states` knows neither torch's optimizer (ZeRO 0) nor teacher and initial model. Here the memory
beneath the tensors is moved instead: their storages are copied, then resized to nothing. Every view stays valid, so
nothing depends on how DeepSpeed or an optimizer arranges flat buffers. Between `park` and `unpark`, no tensor may be
read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_OPENED = ("deepspeed.", "torch.optim.", "services.learner.model.", "bitsandbytes.")
"""Modules of the classes whose attributes are searched for tensors."""


class Parking:
    """The states of one engine."""

    def __init__(self, engine: Any, device: torch.device) -> None:
        self._engine = engine
        self._device = device
        self._copies: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}
        """What is parked, by address of the storage object."""
        self._spare: dict[int, Tensor] = {}
        """CPU buffers of the last turn, since pinning memory takes long."""

    @property
    def parked_bytes(self) -> int:
        """Bytes that are in CPU memory instead of the device's."""
        return sum(copy.numel() for _, copy in self._copies.values())

    def park(self) -> None:
        """Free the engine's memory on its device."""
        _wait(self._device)
        for storage in list(storages(self._engine, self._device)):
            key, size = storage._cdata, storage.nbytes()
            copy = self._spare.pop(key, None)
            if copy is None or copy.numel() != size:
                copy = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            copy.copy_(_bytes_of(storage))
            storage.resize_(0)
            self._copies[key] = storage, copy
        self._spare.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # the other process cannot use what torch would keep

    def unpark(self) -> None:
        """Bring everything back. Does nothing if nothing is parked."""
        for key, (storage, copy) in self._copies.items():
            storage.resize_(copy.numel())
            _bytes_of(storage).copy_(copy)
            self._spare[key] = copy
        self._copies.clear()
        _wait(self._device)


def storages(root: Any, device: torch.device) -> Iterator[torch.UntypedStorage]:
    """Each storage on a device that an engine's tensors use, once. Leaves out those that cannot be resized, such as
    mapped files, which only a CPU has."""
    seen: set[int] = set()
    for tensor in tensors(root):
        if tensor.device.type != device.type:
            continue
        storage = tensor.untyped_storage()
        if storage._cdata not in seen and storage.nbytes() and storage.resizable():
            seen.add(storage._cdata)
            yield storage


def tensors(root: Any) -> Iterator[Tensor]:
    """All tensors that can be reached from an engine."""
    seen, todo = {id(root): root}, [root]  # holding the objects keeps their ids from being used again
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            yield item
        for part in _parts(item):
            if id(part) not in seen:
                seen[id(part)] = part
                todo.append(part)


def _parts(item: Any) -> list[Any]:
    if isinstance(item, Tensor):
        # A partitioned parameter's own part (ZeRO-3), and what DeepSpeed links to a parameter.
        linked = [item.grad] if item.is_leaf else []
        return [part for part in (*linked, *vars(item).values()) if part is not None]
    if isinstance(item, nn.Module):
        return [*item.parameters(), *item.buffers(), *vars(item).values()]
    if isinstance(item, Mapping):
        return [*item.keys(), *item.values()]
    if isinstance(item, (list, tuple, set, frozenset)):
        return list(item)
    if type(item).__module__.startswith(_OPENED):
        return list(getattr(item, "__dict__", {}).values())
    return []


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
