"""Environment variables that libraries read when they are imported."""

from __future__ import annotations

import os
from collections.abc import Mapping


def fill_environment(defaults: Mapping[str, str]) -> None:
    """Set each variable that is unset or empty.

    A container often passes a variable that its user left out as an empty string. Libraries take that for a value:
    libgomp warns about an empty `OMP_NUM_THREADS`, and an empty `VLLM_PLUGINS` loads no plugin.
    """
    for name, value in defaults.items():
        os.environ[name] = os.environ.get(name) or value
