"""Light modules stay light: what a message needs must not bring a heavy library along."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.contracts import streams
from services.contracts.errors import ConflictError
from services.contracts.states import RUN_STATES, TERMINAL_STATES, TRANSITIONS, check_transition

HEAVY = {"torch", "vllm", "deepspeed", "transformers", "numpy", "fastapi", "sqlalchemy", "redis"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("services.contracts.codec", HEAVY | {"pydantic"}),
        ("services.contracts.services", HEAVY | {"pydantic"}),
        ("services.contracts.metrics", HEAVY | {"pydantic"}),
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
