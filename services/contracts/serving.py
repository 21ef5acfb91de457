"""What API and rollout servers agree on about served models: their names, and errors in OpenAI's format."""

from __future__ import annotations

from typing import Any

from services.contracts.errors import NotFoundError, TurnoutError


def model_name(text: str) -> tuple[str, int | None]:
    """Run and pinned weight version of a model's name, `run` or `run@version`; None if no version is pinned.

    Raises:
        NotFoundError: what follows the @ is not a version.
    """
    run_id, separator, version = text.partition("@")
    if not separator:
        return run_id, None
    if not (version.isascii() and version.isdigit() and len(version) < 12):
        raise NotFoundError(
            f"The model {text[:100]!r} does not exist: {version[:100]!r} is not a weight version.",
            remedy=f"Ask model {run_id[:100]} for the newest version, or write a number after the @.",
            field="model",
        )
    return run_id, int(version)


def fingerprint(run_id: str, versions: set[int]) -> str:
    """A reply's `system_fingerprint`: the run, and the first and last weight version that sampled it."""
    first, last = min(versions), max(versions)
    return f"{run_id}@{first}" if first == last else f"{run_id}@{first}..{last}"


def openai_error(error: TurnoutError) -> tuple[dict[str, Any], int]:
    """Body and HTTP status of an error in OpenAI's format, with the remedy in the message."""
    status = 400 if error.status == 422 else error.status
    code = "model_not_found" if status == 404 else status
    return {"error": {"message": str(error), "type": error.title, "param": error.field, "code": code}}, status
