"""Exit codes of `turnout`, for scripts. docs/cli.md lists them."""

from __future__ import annotations

from typing import Final

from services.contracts.errors import (
    ConfigurationError,
    ConflictError,
    NotFoundError,
    TurnoutError,
    UnavailableError,
)

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
"""The run failed, a check failed, or an unexpected error occurred."""
EXIT_USAGE: Final = 2
"""Wrong arguments, run file or setting."""
EXIT_UNAVAILABLE: Final = 3
"""The API, the queue server, the port or the disk is unavailable."""
EXIT_NOT_FOUND: Final = 4
EXIT_CONFLICT: Final = 5
"""The current state forbids it, or the home is in use."""
EXIT_STOPPED: Final = 6
"""The run that was watched was stopped before its last step."""
EXIT_INTERRUPTED: Final = 130


def exit_code(error: TurnoutError) -> int:
    """The code for an error."""
    for kind, code in (
        (ConfigurationError, EXIT_USAGE),
        (NotFoundError, EXIT_NOT_FOUND),
        (ConflictError, EXIT_CONFLICT),
        (UnavailableError, EXIT_UNAVAILABLE),
    ):
        if isinstance(error, kind):
            return code
    return EXIT_FAILED
