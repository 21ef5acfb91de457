"""Light modules stay light: what a message needs must not bring a heavy library along."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.contracts import streams
from services.contracts.errors import ConflictError, MalformedMessageError
from services.contracts.states import RUN_STATES, TERMINAL_STATES, TRANSITIONS, check_transition
from services.runtime.settings import Settings

HEAVY = {"torch", "vllm", "deepspeed", "transformers", "numpy", "fastapi", "sqlalchemy", "redis"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("services.contracts.codec", HEAVY | {"pydantic"}),
        ("services.contracts.heartbeat", HEAVY | {"pydantic"}),
        ("services.contracts.step_metrics", HEAVY | {"pydantic"}),
        ("services.contracts.run_config", HEAVY),
    ],
)
def test_importing_a_contract_loads_nothing_heavy(module: str, forbidden: set[str]) -> None:
    code = f"import sys, {module}; print('\\n'.join(name.split('.')[0] for name in sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & forbidden


@pytest.mark.parametrize("old", RUN_STATES)
@pytest.mark.parametrize("new", RUN_STATES)
def test_every_pair_of_states_is_allowed_or_refused_by_name(old: str, new: str) -> None:
    if old == new or new in TRANSITIONS[old]:  # type: ignore[index]
        check_transition(old, new)  # type: ignore[arg-type]
    else:
        with pytest.raises(ConflictError, match=f"{old} cannot become {new}"):
            check_transition(old, new)  # type: ignore[arg-type]


def test_a_finished_run_only_ever_goes_back_into_the_queue() -> None:
    for state in TERMINAL_STATES:
        assert TRANSITIONS[state] <= {"queued"}
    assert not TRANSITIONS["succeeded"]


def test_all_keys_of_a_run_share_one_hash_tag() -> None:
    keys = streams.run_keys("abc")
    assert len(set(keys)) == len(keys)
    assert all("{abc}" in key for key in keys)


NO_RUN_IDS = ["", "..", "../../etc", "a/b", "a b", "a}:config", "-a", "a\n", "ä", "a.b", "a\0", "a" * 65]


@pytest.mark.parametrize("text", NO_RUN_IDS)
def test_what_is_no_run_id_names_no_key_and_no_folder(text: str) -> None:
    with pytest.raises(MalformedMessageError, match="is not a run id"):
        streams.run_keys(text)
    for folder in (Settings().run_folder, Settings().weights_of, Settings(weights_folder="/dev/shm/w").weights_of):
        with pytest.raises(MalformedMessageError, match="is not a run id"):
            folder(text)


def test_every_key_of_a_run_says_which_run() -> None:
    assert {streams.run_of(key) for key in streams.run_keys("demo-3f9c2a1b")} == {"demo-3f9c2a1b"}
    others = [streams.EVENTS, streams.RUNS, streams.service("a"), streams.assignment("a")]
    assert {streams.run_of(key) for key in others} == {None}
