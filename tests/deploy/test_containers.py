"""The programs in containers: JSON on the logs, GPUs, health."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.docker import entry, health
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (b"Loading weights:  50%|#####", "Loading weights:  50%|#####"),
        (b"\x1b[32mINFO\x1b[0m ready", "INFO ready"),
        (b'{"half": ', '{"half":'),
        (b"\xff", "\ufffd"),
    ],
)
def test_other_lines_become_json(line: bytes, event: str) -> None:
    made = entry.as_json(line, {"service": "learner"})
    assert made is not None
    assert json.loads(made).items() >= {"event": event, "service": "learner", "level": "info"}.items()


def test_why_a_service_ends_is_an_error() -> None:
    made = entry.as_json(b"turnout api: The database cannot be opened.", {"service": "api"})
    assert made is not None
    assert json.loads(made)["level"] == "error"


def test_json_stays_as_it_is_and_nothing_says_nothing() -> None:
    line = b'{"event": "x", "level": "error"}'
    assert entry.as_json(line, {}) == line
    assert entry.as_json(b" ", {}) is None


def test_progress_bars_and_long_lines_are_cut() -> None:
    read, write = os.pipe()
    text = b"1%\r2%\rdone\n" + b"x" * (3 * entry.MAX_LINE_BYTES) + b"\nend"
    thread = threading.Thread(target=lambda: (os.write(write, text[:20]), os.write(write, text[20:]), os.close(write)))
    thread.start()
    with open(read, "rb", buffering=0) as stream:
        found = list(entry.lines(stream))
    thread.join()
    assert found[:3] == [b"1%", b"2%", b"done"]
    assert found[-1] == b"end"
    assert max(map(len, found)) <= 2 * entry.MAX_LINE_BYTES


def test_each_rollout_server_gets_a_gpu_and_a_dead_ones_is_free_again(tmp_path: Path) -> None:
    first, claims = entry.claim_gpus(["0", "2"], 1, tmp_path)
    second, others = entry.claim_gpus(["0", "2"], 1, tmp_path)
    assert (first, second) == (["0"], ["2"])
    with pytest.raises(entry.NoGpuLeftError, match="ROLLOUT_GPUS is 0,2"):
        entry.claim_gpus(["0", "2"], 1, tmp_path)
    os.close(claims[0])
    assert entry.claim_gpus(["0", "2"], 1, tmp_path)[0] == ["0"]
    os.close(others[0])


def test_groups_of_gpus_are_claimed_as_a_whole(tmp_path: Path) -> None:
    gpus = ["0", "1", "2", "3"]
    _, single = entry.claim_gpus(["1"], 1, tmp_path)  # a server from before the setting was changed
    group, claims = entry.claim_gpus(gpus, 2, tmp_path)
    assert group == ["2", "3"]
    with pytest.raises(entry.NoGpuLeftError, match="have all of these"):
        entry.claim_gpus(gpus, 2, tmp_path)
    os.close(single[0])
    assert entry.claim_gpus(gpus, 2, tmp_path)[0] == ["0", "1"], "GPU 0 was given back with the group"
    with pytest.raises(entry.NoGpuLeftError, match="ROLLOUT_GPUS_PER_SERVER=3 does not divide"):
        entry.claim_gpus(gpus, 3, tmp_path)
    for claim in claims:
        os.close(claim)


@pytest.mark.parametrize(
    ("service", "rollout", "size", "learner", "visible"),
    [
        ("rollout", "3", "1", "1,2", "3,1"),
        ("rollout", "0", "", "0", "0"),
        ("rollout", "3,4", "2", "1,2", "3,4,1"),
        ("rollout", "0,1", "2", "1", "0,1"),
        ("learner", "3", "1", "1,2", "1,2"),
        ("verifier", "3", "1", "1,2", None),
        ("rollout", "", "1", "", None),
    ],
)
def test_gpus_of_the_environment(
    service: str,
    rollout: str,
    size: str,
    learner: str,
    visible: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {"ROLLOUT_GPUS": rollout, "ROLLOUT_GPUS_PER_SERVER": size, "LEARNER_GPUS": learner}
    for name, value in (values | {"TURNOUT_HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    assert entry.gpu_environment(service).get("CUDA_VISIBLE_DEVICES") == visible


def test_the_entry_passes_on_signals_and_exit_codes(tmp_path: Path) -> None:
    """A service that says something odd, waits for SIGTERM, and ends with 7."""
    package = tmp_path / "services"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "odd.py").write_text(
        "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print('not json', flush=True)\nsignal.pause()\n"
    )
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\nfrom deploy.docker import entry\n"
    )
    program += f"entry.PID_FILE = Path({str(tmp_path / 'pid')!r})\nsys.exit(entry.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "odd"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert process.stderr is not None
    assert json.loads(process.stderr.readline())["event"] == "not json"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 7
    process.stderr.close()


class Service(http.server.BaseHTTPRequestHandler):
    """Says what the test sets; None: never answers."""

    answers: dict[str, int | None] = {}
    gone = threading.Event()

    def do_GET(self) -> None:
        code = self.answers[self.path]
        if code is None:
            self.gone.wait(30)
            return
        self.send_response(code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_health_is_readiness_and_a_hung_service_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(health, "PID_FILE", tmp_path / "pid")
    monkeypatch.setattr(health, "COUNT_FILE", tmp_path / "count")
    monkeypatch.setattr(health, "TIMEOUT_SECONDS", 0.2)
    (tmp_path / "pid").write_text(str(victim.pid))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("TURNOUT_PORT", str(server.server_port))
        Service.answers = {"/healthz": 200, "/readyz": 503}
        assert health.main() == 1, "not ready"
        Service.answers = {"/healthz": None, "/readyz": None}
        assert [health.main() for _ in range(health.FAILURES - 1)] == [1, 1]
        Service.answers = {"/healthz": 200, "/readyz": 200}
        assert health.main() == 0, "an answer in between: counted from the start"
        Service.answers = {"/healthz": None}
        for _ in range(health.FAILURES):
            assert victim.poll() is None
            health.main()
        Service.gone.set()
        server.shutdown()
    assert victim.wait(timeout=10) == -signal.SIGKILL


def test_a_service_that_does_not_listen_is_not_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "COUNT_FILE", tmp_path / "count")
    monkeypatch.setenv("TURNOUT_PORT", "1")
    assert health.main() == 1
    assert not health.COUNT_FILE.exists()
