"""A device that is the CPU under another name, so that a mix of devices and hidden synchronisations show without a GPU.

torch's fake CUDA tensors abort in the backward pass if torch is built without CUDA. This is a backend in Python:
its tensors hold values (so passes run, and their results can be compared with the CPU's), torch itself believes that
they are elsewhere, and every operation comes by here:

- tensors of both devices in one operation are refused, as CUDA does (single numbers of the CPU may take part);
- what would wait for a GPU is counted in `journal`. Copies to the device are not: they are queued.

Use it in a process of its own: torch keeps the name of the backend until the process ends.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "virtual"
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::bincount", "aten::equal"}
WAITING |= {"aten::unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::is_nonzero"}
INDEXING = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}
COPIES = {"aten::_to_copy", "aten::copy_"}


class MixedDevicesError(RuntimeError):
    """An operation got tensors of both devices."""


class Journal:
    """What would wait for a GPU, by operation and the line of the product that asked for it."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()


journal = Journal()


class Elsewhere(torch.Tensor):
    """A tensor of the virtual device; its values are in `here`."""

    here: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.here = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _call(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()


class _Everywhere(TorchDispatchMode):
    """Brings operations without arguments on the device, such as `zeros`, to `_call`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Backend(_DummyBackendModule):
    """What gradient checkpointing asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def device(self, _: object) -> AbstractContextManager[None]:
        return nullcontext()

    def get_rng_state(self, *_: object) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, *_: object) -> None:
        """There is no dropout, so nothing is random."""


def register() -> None:
    """Make the device known to torch. Call it before the first backward pass, which counts devices."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())


@contextmanager
def virtual_device() -> Iterator[torch.device]:
    """Inside, tensors can be made on the device."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=...)` comes by here, too
    try:
        with _Everywhere():
            yield torch.device(NAME, 0)
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def moved(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` on the device; tied weights stay tied."""
    model.to(device)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model


def _call(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name  # type: ignore[attr-defined]
    given = [item for item in tree_iter((args, kwargs)) if isinstance(item, torch.Tensor)]
    theirs = [item for item in given if isinstance(item, Elsewhere)]
    ours = [item for item in given if not isinstance(item, Elsewhere)]
    device = kwargs.get("device")
    there = bool(theirs) if device is None else torch.device(device).type == NAME
    _note(name, args, theirs, ours, there)
    plain_args, plain_kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
    if device is not None:
        plain_kwargs["device"] = torch.device("cpu")
    found = func(*plain_args, **plain_kwargs)

    def outer(item: Any) -> Any:
        if not isinstance(item, torch.Tensor):
            return item
        for own in given:  # an operation in place returns the tensor that it got
            if own is item or _inner(own) is item:
                return own
        return Elsewhere(item) if there else item

    return tree_map(outer, found)


def _inner(item: Any) -> Any:
    return item.here if isinstance(item, Elsewhere) else item


def _note(name: str, args: Any, theirs: list[Any], ours: list[Any], there: bool) -> None:
    """Refuse mixes; count what waits."""
    if name in COPIES:
        source = args[1] if name == "aten::copy_" else args[0]
        target_there = isinstance(args[0], Elsewhere) if name == "aten::copy_" else there
        if isinstance(source, Elsewhere) and not target_there:
            journal.waits[f"{name} to the CPU at {_line()}"] += 1
        return
    if theirs and any(item.ndim for item in ours):
        raise MixedDevicesError(f"{name} got tensors of both devices at {_line()}")
    indices = args[1] if name in INDEXING else ()
    masked = any(isinstance(item, Elsewhere) and item.dtype is torch.bool for item in indices)
    if theirs and (name in WAITING or masked):
        journal.waits[f"{name} at {_line()}"] += 1


def _line() -> str:
    """The innermost line of the product, or of transformers."""
    for frame in reversed(traceback.extract_stack()):
        for part in ("/services/", "/transformers/"):
            if part in frame.filename and "/tests/" not in frame.filename:
                return f"{part}{frame.filename.partition(part)[2]}:{frame.name}"
    return "tests"
