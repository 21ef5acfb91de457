"""Checks for system libraries that no Python package provides."""

from __future__ import annotations

import ctypes

from services.contracts.errors import ConfigurationError


def check_vllm_cpu() -> None:
    """Raise `ConfigurationError` if vLLM's CPU build cannot load its kernels. vLLM itself would only log it and fail
    later, at every start of an engine."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        raise ConfigurationError(
            "The shared library libnuma.so.1 is missing, which vLLM's CPU build needs.",
            remedy="Install it (Debian and Ubuntu: apt install libnuma1; Fedora: dnf install numactl-libs).",
        ) from error
