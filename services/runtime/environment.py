"""Environment variables that libraries read when they are imported."""

from __future__ import annotations

import os
from collections.abc import Mapping

KEEP_MEMORY = {
    "GLIBC_TUNABLES": ":".join(
        (
            "glibc.malloc.mmap_threshold=1073741824",
            "glibc.malloc.trim_threshold=17179869184",
            "glibc.malloc.arena_max=1",  # what one thread has freed serves the others
            "glibc.malloc.hugetlb=1",  # ask the kernel for huge pages
        )
    )
}
"""For the learner's processes, at their start. By default, malloc gives the memory of large tensors back to the
kernel, so that each operation's result is filled with zeros page by page first; that took a fifth of a large model's
update (docs/decisions, 257)."""


def fill_environment(defaults: Mapping[str, str]) -> None:
    """Set each variable that is unset or empty."""
    os.environ.update(filled(defaults))


def filled(defaults: Mapping[str, str]) -> dict[str, str]:
    """The variables that are unset or empty with the values of `defaults`, the others as they are.

    A container often passes a variable that its user left out as an empty string. Libraries take that for a value:
    libgomp warns about an empty `OMP_NUM_THREADS`, and an empty `VLLM_PLUGINS` loads no plugin.
    """
    return {name: os.environ.get(name) or value for name, value in defaults.items()}
