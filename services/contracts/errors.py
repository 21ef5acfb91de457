"""Named errors. Each has one clear sentence and, if a user can act, a remedy."""

from __future__ import annotations

import re


class TurnoutError(Exception):
    """Base of named errors. `str()` gives sentence and remedy; `status` is the API's HTTP status."""

    status = 500
    title = "Internal error"

    def __init__(self, message: str, *, remedy: str = "", field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.field = field

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class ConfigurationError(TurnoutError):
    """A run file, setting or request is invalid. Its author can correct it."""

    status = 422
    title = "Invalid configuration"


class ForbiddenError(TurnoutError):
    """The caller's key has no role for this."""

    status = 403
    title = "Forbidden"


class NotFoundError(TurnoutError):
    """What a request names does not exist."""

    status = 404
    title = "Not found"


class ConflictError(TurnoutError):
    """The request is valid, but the current state does not allow it."""

    status = 409
    title = "Conflict"


class UnavailableError(TurnoutError):
    """A dependency (queue, database, rollout server) does not respond."""

    status = 503
    title = "Unavailable"


class OverloadedError(TurnoutError):
    """Too many requests are in progress already. The same request may succeed later."""

    status = 429
    title = "Too many requests"


class MalformedMessageError(TurnoutError):
    """Bytes on a stream that are not a valid message. They go to the dead-letter stream with this reason."""

    title = "Malformed message"


class InfrastructureError(TurnoutError):
    """Our own fault while sampling or judging. It is retried, then the sample is excluded, never scored 0."""

    title = "Infrastructure fault"


class QuestionError(InfrastructureError):
    """The question itself cannot be judged, because its answer or tests are invalid. A retry does not help."""


def check_secret(name: str, secret: str) -> None:
    """Raise `ConfigurationError` if a key or token cannot be sent in a header. Libraries' errors would reveal it."""
    if not (secret.isascii() and secret.isprintable()) or secret != secret.strip():
        raise ConfigurationError(
            f"{name} has a line break, a space at an end or another character that no header takes.",
            remedy="Take it out (a file that it was read from may end with a line break).",
            field=name,
        )


BAD_URL = "the URL cannot be read (in passwords, write / : @ ? # as %2F %3A %40 %3F %23)"
"""Replaces libraries' messages, which quote parts of a password."""
_SECRET_FIELD = re.compile(r"(?i)([?&][^=&#]*(?:password|username|key|token|secret)[^=&#]*=)[^&#]*")


def without_password(url: str) -> str:
    """A server's URL for errors and logs, without the password and what fields of the query name a secret."""
    url = _SECRET_FIELD.sub(r"\1***", url)
    head, separator, tail = url.rpartition("@")
    if not separator:
        return url
    scheme = head.partition("://")[0]
    return f"{scheme}://***@{tail}"
