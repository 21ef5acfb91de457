"""Background work leaves the processor to others, and may compete for it again afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.runtime.courtesy import AUTOGROUP

LOOK = """
from services.runtime.courtesy import AUTOGROUP, Courtesy
AUTOGROUP.write_text("3")
courtesy = Courtesy()
for yes in (False, True, True, False, False):
    courtesy.give_way(yes)
    print(AUTOGROUP.read_text(), end="")
"""


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroups")
def test_a_session_gives_way_and_then_has_its_own_niceness_again() -> None:
    command = [sys.executable, "-c", LOOK]
    said = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True).stdout
    assert [line.split(" ")[-1] for line in said.splitlines()] == ["3", "19", "19", "3", "3"]
