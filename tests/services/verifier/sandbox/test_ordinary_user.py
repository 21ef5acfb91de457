"""The corpus again, with a verifier that has no privileges at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.services.verifier.sandbox.conftest import PYTHONS
from tests.services.verifier.sandbox.corpus import corpus

NOBODY_UID = 65534
_START = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runpy; "
_START += "runpy.run_module('tests.services.verifier.sandbox.as_user', run_name='__main__')"


@cache
def report() -> dict[str, Any]:
    """The output of as_user.py, run by a user other than root."""
    user: dict[str, Any] = {"user": NOBODY_UID, "group": NOBODY_UID, "extra_groups": []} if os.geteuid() == 0 else {}
    said = ""
    for python in dict.fromkeys(filter(lambda path: Path(path).exists(), (sys.executable, *PYTHONS))):
        try:
            done = subprocess.run(
                [python, "-P", "-c", _START], cwd="/", env={}, capture_output=True, text=True, timeout=240, **user
            )
        except PermissionError as error:  # an interpreter that this user cannot even start
            said += str(error)
            continue
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout)
            return found
        said += done.stderr
    raise AssertionError(said)


@pytest.mark.parametrize("mode", ["bare", "isolated"])
def test_all_contained(mode: str) -> None:
    found = report()
    assert found["uid"] != 0
    if mode == "isolated" and "private_root" not in found["layers"]:
        assert mode not in found, "namespaces are not available to ordinary users here, so none may be reported"
        return
    assert len(found[mode]) == len(corpus()) + 2
    assert {name: problems for name, problems in found[mode].items() if problems} == {}


def test_threads_of_the_users_other_processes_do_not_count() -> None:
    assert report()["threads"] == ["done\n", "done\n"]
