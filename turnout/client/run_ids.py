"""Resolves the run ids that users type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.contracts.errors import ConflictError, NotFoundError
from turnout.client.client import Client


@contextmanager
def client_of(api_url: str | None, given: str) -> Iterator[tuple[Client, str]]:
    """A client of the API, and the id of the run that `given` names. Raises as `full_id` does."""
    with Client(api_url) as client:
        yield client, full_id(client, given)


def full_id(client: Client, given: str) -> str:
    """The id of the run that `given` names: an id, or the beginning of exactly one.

    Raises:
        ConflictError: several ids begin like this.
        NotFoundError: none does.
    """
    try:
        return client.run(given).id
    except NotFoundError:
        matches = [run.id for run in client.runs() if run.id.startswith(given)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConflictError(f"{len(matches)} run ids begin with {given}.", remedy="Give more characters of the id.")
    raise NotFoundError(f"There is no run {given}.", remedy="`turnout runs list` lists all runs.")
