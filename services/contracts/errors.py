"""Named errors. Each carries one clear sentence and, where a person can act, the remedy."""

from __future__ import annotations

import re


class TurnoutError(Exception):
    """A fault that we name. `str()` gives the sentence and the remedy; `status` is the API's HTTP status."""

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
    """A run file, setting or request names something that cannot work. The person who wrote it can mend it."""

    status = 422
    title = "Invalid configuration"


class NotFoundError(TurnoutError):
    """The thing that a request names does not exist."""

    status = 404
    title = "Not found"


class ConflictError(TurnoutError):
    """The request is well formed but the present state forbids it."""

    status = 409
    title = "Conflict"


class UnavailableError(TurnoutError):
    """A part that we depend on (queue, database, rollout server) does not answer."""

    status = 503
    title = "Unavailable"


class MalformedMessageError(TurnoutError):
    """Bytes on a stream that are not a message we know. They go to the dead-letter stream with this reason."""

    title = "Malformed message"


class InfrastructureError(TurnoutError):
    """A fault of ours while a sample was made or judged. It is retried, then the sample is excluded: never reward 0."""

    title = "Infrastructure fault"


class QuestionError(InfrastructureError):
    """The question itself cannot be judged (its answer or tests make no sense). Trying again does not help."""


def check_secret(name: str, secret: str) -> None:
    """Raise `ConfigurationError` where a key or token cannot be sent in a header. Libraries' errors would quote it."""
    if not (secret.isascii() and secret.isprintable()) or secret != secret.strip():
        raise ConfigurationError(
            f"{name} has a line break, a space at an end or another character that no header takes.",
            remedy="Take it out (a file that it was read from may end with a line break).",
            field=name,
        )


BAD_URL = "the URL cannot be read (in passwords, write / : @ ? # as %2F %3A %40 %3F %23)"
"""In place of what libraries say, which quotes parts of a password."""
_PASSWORD_FIELD = re.compile(r"(?i)([?&](?:password|username)=)[^&#]*")


def without_password(url: str) -> str:
    """A server's URL as it may be shown in errors and logs."""
    url = _PASSWORD_FIELD.sub(r"\1***", url)
    head, separator, tail = url.rpartition("@")
    if not separator:
        return url
    scheme = head.partition("://")[0]
    return f"{scheme}://***@{tail}"
