"""`from turnout import ...`: every name is there, and none brings in more than it needs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import turnout

HEAVY = {"torch", "pydantic_settings", "services.runtime", "sqlalchemy", "vllm", "transformers", "redis"}
UNUSED = {
    "Client": {*HEAVY, "pydantic", "services.verifier", "services.contracts.run_config"},
    "AsyncClient": {*HEAVY, "pydantic", "services.verifier", "services.contracts.run_config"},
    "RunConfig": {*HEAVY, "httpx", "services.verifier"},
    "Judgement, Question, QuestionError": {*HEAVY, "httpx", "pydantic", "services.verifier"},
}


@pytest.mark.parametrize("names", UNUSED)
def test_what_a_name_does_not_load(names: str) -> None:
    program = f"import json, sys; from turnout import {names}; print(json.dumps(list(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(json.loads(result.stdout)) & UNUSED[names]


def test_every_name_is_there_and_no_other() -> None:
    assert sorted(turnout.__all__) == turnout.__all__
    for name in turnout.__all__:
        assert getattr(turnout, name) is not None
    assert turnout.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'Clients'"):
        turnout.Clients  # noqa: B018
