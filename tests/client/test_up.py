"""`turnout up` in the foreground: says when it is ready, and Ctrl-C stops everything."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.client.rings import light_plan, only
from turnout.cli.exits import EXIT_OK
from turnout.cli.local import launcher
from turnout.cli.local.plan import ONE_EACH, Counts, Plan
from turnout.cli.local.processes import launched, read_state

pytestmark = pytest.mark.timeout(180)


def test_up_until_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[Plan] = []

    def make(home: Path, counts: Counts = ONE_EACH, *, api_port: int = 0) -> Plan:
        made.append(only(light_plan(home, counts, api_port=api_port), "api", "verifier"))
        return made[-1]

    def press_when_ready() -> None:
        while (state := read_state(tmp_path)) is None or not state.ready:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(launcher, "make_plan", make)
    threading.Thread(target=press_when_ready, daemon=True).start()
    code = launcher.up(tmp_path, ONE_EACH, api_port=0, as_json=False)
    assert code == EXIT_OK
    out = capsys.readouterr().out
    assert f"Ready. API and page: {made[0].api_url}" in out
    assert "api-0: ready" in out
    assert launched(made[0].launch) == []
    assert read_state(tmp_path) is None
