"""The public interface of Turnout; everything else may change between releases. See docs/client.md.

Names are imported on first use (PEP 562), so that a reward in a worker process does not import an HTTP client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.contracts.errors import (
        ConfigurationError,
        ConflictError,
        NotFoundError,
        QuestionError,
        TurnoutError,
        UnavailableError,
    )
    from services.contracts.judgement import Judgement
    from services.contracts.messages import Question
    from services.contracts.run_config import RunConfig
    from turnout.cli.run_file import load_run
    from turnout.client.async_client import AsyncClient
    from turnout.client.client import Client

    __version__: str

_MODULES = {
    "AsyncClient": "turnout.client.async_client",
    "Client": "turnout.client.client",
    "ConfigurationError": "services.contracts.errors",
    "ConflictError": "services.contracts.errors",
    "Judgement": "services.contracts.judgement",
    "NotFoundError": "services.contracts.errors",
    "Question": "services.contracts.messages",
    "QuestionError": "services.contracts.errors",
    "RunConfig": "services.contracts.run_config",
    "TurnoutError": "services.contracts.errors",
    "UnavailableError": "services.contracts.errors",
    "load_run": "turnout.cli.run_file",
}

__all__ = [
    "AsyncClient",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "Judgement",
    "NotFoundError",
    "Question",
    "QuestionError",
    "RunConfig",
    "TurnoutError",
    "UnavailableError",
    "__version__",
    "load_run",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("turnout")
    elif name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
