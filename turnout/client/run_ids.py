"""Resolves the ids of runs, evaluations and experiments that users type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from services.contracts.errors import ConflictError, ForbiddenError, NotFoundError
from turnout.client.client import Client

MOST_NAMED = 5


class _Named(Protocol):
    @property
    def id(self) -> str: ...


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
    return _only("run", "runs", given, client.run, client.runs)


def full_model_name(client: Client, given: str) -> str:
    """The model that `given` names: a base model's path as it is, or a run's id or its beginning, as for `full_id`.

    A key with the role `use` can read only the list of models: with it, a beginning finds the runs that answer now, and
    anything else is returned as it is, for the API to answer.

    Raises:
        ConflictError: several ids begin like this.
        NotFoundError: none does, and the key may read runs.
    """
    if "/" in given:
        return given
    live = [model.id for model in client.models() if model.state == "live"]
    if given in live:
        return given
    try:
        return full_id(client, given)
    except ForbiddenError:
        matches = [name for name in live if name.startswith(given)]
        return _single("run", given, matches) if matches else given


def full_experiment_id(client: Client, given: str) -> str:
    """The id of the experiment that `given` names: an id, or the beginning of exactly one. Raises as
    `full_id` does."""
    return _only("experiment", "experiments", given, client.experiment, client.experiments)


def full_evaluation_id(client: Client, given: str) -> str:
    """The id of the evaluation that `given` names: an id, or the beginning or end of exactly one. Raises
    as `full_id` does."""
    return _only("evaluation", "evaluations", given, client.evaluation, client.model_evaluations, by_end=True)


def _only(
    what: str,
    command: str,
    given: str,
    ask: Callable[[str], _Named],
    listed: Callable[[], Iterable[_Named]],
    *,
    by_end: bool = False,
) -> str:
    try:
        return ask(given).id
    except NotFoundError:
        matches = [item.id for item in listed() if item.id.startswith(given) or (by_end and item.id.endswith(given))]
    if matches:
        return _single(what, given, matches)
    raise NotFoundError(f"There is no {what} {given}.", remedy=f"`turnout {command} list` lists all {what}s.")


def _single(what: str, given: str, matches: Sequence[str]) -> str:
    if len(matches) == 1:
        return matches[0]
    raise ConflictError(
        f"{len(matches)} {what} ids match {given}: {', '.join(matches[:MOST_NAMED])}.",
        remedy="Give more characters of the id.",
    )
