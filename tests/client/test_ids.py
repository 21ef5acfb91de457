"""Ids as users type them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.contracts.errors import ConflictError, ForbiddenError, NotFoundError
from turnout import Client
from turnout.client.run_ids import full_evaluation_id, full_experiment_id, full_id, full_model_name

NEWEST = ("demo-1a2b", "demo-1c3d", "task-9e9e")
OLD = "demo-0000"


class Crowded:
    """A client of a deployment with more of everything than its lists show."""

    def run(self, given: str) -> SimpleNamespace:
        if given not in (*NEWEST, OLD):
            raise NotFoundError("There is none.")
        return SimpleNamespace(id=given)

    def runs(self, **_: Any) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=name) for name in NEWEST]

    def models(self) -> list[SimpleNamespace]:
        on_demand = SimpleNamespace(id=f"{OLD}@3", state="loaded")
        return [SimpleNamespace(id=name, state="live") for name in NEWEST[:2]] + [on_demand]

    experiment = evaluation = run
    experiments = model_evaluations = runs


class Using(Crowded):
    """The same client with a key that may ask models and nothing else."""

    def run(self, given: str) -> SimpleNamespace:
        raise ForbiddenError("This key has the role use.")


CLIENT, USING = cast(Client, Crowded()), cast(Client, Using())


@pytest.mark.parametrize("full", [full_id, full_experiment_id, full_evaluation_id])
def test_an_id_or_its_beginning_is_enough(full: Callable[[Client, str], str]) -> None:
    assert full(CLIENT, "task") == "task-9e9e"
    assert full(CLIENT, OLD) == OLD, "however many are newer"
    with pytest.raises(ConflictError, match=r"2 \w+ ids match demo-1: demo-1a2b, demo-1c3d\."):
        full(CLIENT, "demo-1")
    with pytest.raises(NotFoundError, match=r"There is no \w+ none\."):
        full(CLIENT, "none")


def test_the_end_of_an_evaluations_id_is_enough() -> None:
    assert full_evaluation_id(CLIENT, "3d") == "demo-1c3d"


@pytest.mark.parametrize("client", [CLIENT, USING])
def test_a_model_is_a_live_run_an_ended_one_or_a_base_model(client: Client) -> None:
    assert full_model_name(client, "demo-1a") == "demo-1a2b"
    assert full_model_name(client, OLD) == OLD, "the newest version, whichever is loaded on demand"
    assert full_model_name(client, "models/small") == "models/small"
    with pytest.raises(ConflictError, match=r"2 run ids match demo-1: demo-1a2b, demo-1c3d\."):
        full_model_name(client, "demo-1")


def test_only_a_key_that_reads_runs_can_shorten_the_id_of_an_ended_one() -> None:
    assert full_model_name(CLIENT, "task") == "task-9e9e"
    assert full_model_name(USING, "task") == "task", "the API answers that there is none"
