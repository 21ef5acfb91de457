"""The command sends a terminal nothing that it would obey, whatever the source, and nothing that it cannot show."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.contracts.errors import TurnoutError
from services.contracts.plain_text import in_line, in_lines
from turnout.cli import terminal
from turnout.cli.main import app
from turnout.cli.terminal import json_text

EVIL = "a\x1b]0;title\x07\x1b[31mred\x9b2J\u202egnp.\u2066\u2028b\r\x00\x7f[bold]c[/bold]:rocket:é\U0001f680"
SHOWN = r"a\x1b]0;title\x07\x1b[31mred\x9b2J\u202egnp.\u2066\u2028b\r\x00\x7f[bold]c[/bold]:rocket:é" + "\U0001f680"
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
RUN: dict[str, Any] = {
    "id": "r-1",
    "name": EVIL,
    "state": "failed",
    "reason": EVIL + "\nsecond line",
    "objective": EVIL,
}
RUN |= {"learner": EVIL, "config": {"name": EVIL}, "num_steps": 3}
SAMPLE = {"index": 0, "text": EVIL + "\nline\ttab", "tokens": [EVIL], "reward": 1.0, "correct": True, "route": EVIL}
GROUP = {"step": 1, "group_id": EVIL, "question_id": EVIL, "prompt": EVIL, "answer": EVIL}
EVENTS = [("note", {"level": EVIL, "source": EVIL, "text": EVIL}), ("state", {"state": "failed", "reason": EVIL})]
SERVICE = {"url": EVIL, "state": "ready", "pid": 1, "started_at": 0.0, "at": 1.0}
QUESTION = {"question_id": EVIL, "kind": EVIL, "before": 0, "after": 1}
CHANGE = {"set": EVIL, "num_questions": 1, "before": 0, "after": 1, "num_better": 1, "num_worse": 0}
CHANGE |= {"difference": {"value": 1, "low": None, "high": None}}
ANSWERS: dict[str, Any] = {
    "/v1/runs": {"items": [RUN]},
    "/v1/runs/r-1": RUN,
    "/v1/runs/r-1/steps": {"items": [{"step": 1, "at": 1.0, "metrics": {EVIL: 0.5, "reward_mean": 0.5}}]},
    "/v1/runs/r-1/evaluations": {
        "items": [
            {"step": 0, "at": 1.0, "split": EVIL, "num_questions": 1, "num_samples": 1, "accuracy": 0, "pass_at_k": 0}
        ]
    },
    "/v1/runs/r-1/evaluations/difference": {
        "first": EVIL,
        "second": EVIL,
        "num_unpaired": 0,
        "sets": [CHANGE | {"learned": [QUESTION], "forgotten": [QUESTION]}],
    },
    "/v1/runs/r-1/checkpoints": {"items": [{"step": 1, "at": 1.0, "path": EVIL, "bytes": 1, "seconds": 1.0}]},
    "/v1/runs/r-1/weight-pushes": {
        "items": [{"version": 1, "at": 1.0, "instance": EVIL, "seconds": 1.0, "error": EVIL, "transport": EVIL}]
    },
    "/v1/runs/r-1/samples": {
        "items": [GROUP | {"samples": [SAMPLE | {"advantage": 0.5}], "material": {"responses": []}}]
    },
    "/v1/runs/r-1/samples/readings": {
        "weights": EVIL,
        "policy": [-1.0],
        "teachers": [{"prompt": EVIL, "num_prompt_tokens": 3, "logprobs": [-0.5]}],
    },
    "/v1/services": {
        "items": [
            SERVICE | {"kind": "learner", "instance": EVIL, "waiting_for": EVIL, "waiting_since": 0.0},
            SERVICE | {"kind": "rollout", "instance": "x", "out_of_rotation": True, "weight_error": EVIL},
        ]
    },
    "/v1/queues": {"items": [{"run_id": EVIL, "stream": EVIL, "depth": 1}]},
    "/v1/keys": {"items": [{"id": EVIL, "name": EVIL, "role": "read"}]},
    "/v1/run-files": {"items": [{"name": EVIL, "text": EVIL + "\nb: 1"}]},
}
COMMANDS = {
    "list": ["runs", "list"],
    "show": ["runs", "show", "r-1"],
    "watch": ["runs", "watch", "r-1"],
    "events": ["runs", "events", "r-1", "--no-follow"],
    "samples": ["runs", "samples", "r-1"],
    "teachers": ["runs", "teachers", "r-1", "--teacher", "0"],
    "steps": ["runs", "steps", "r-1"],
    "evaluations": ["runs", "evaluations", "r-1"],
    "changes": ["runs", "changes", "r-1"],
    "checkpoints": ["runs", "checkpoints", "r-1"],
    "pushes": ["runs", "pushes", "r-1"],
    "files": ["runs", "files"],
    "file": ["runs", "files", EVIL],
    "services": ["services"],
    "queues": ["queues"],
    "keys": ["keys", "list"],
    "stop": ["runs", "stop", "r-1"],
}


class Hostile(BaseHTTPRequestHandler):
    """An API whose texts are all malicious."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/events"):
            text = "".join(
                f"id: {n}\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for n, (kind, data) in enumerate(EVENTS)
            )
            self._send(200, "text/event-stream", text)
        elif path in ANSWERS:
            self._send(200, "application/json", json.dumps(ANSWERS[path]))
        else:
            problem = {"title": EVIL, "detail": EVIL, "remedy": EVIL, "field": EVIL}
            self._send(409, "application/problem+json", json.dumps(problem))

    do_POST = do_GET

    def _send(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("command", COMMANDS)
def test_texts_are_shown_and_not_obeyed(url: str, command: str, as_json: bool) -> None:
    arguments = [*COMMANDS[command], "--api-url", url, *(["--json"] if as_json else [])]
    result = CliRunner().invoke(app, arguments)
    output = result.stdout
    if command == "stop":  # an error, which `main` prints
        assert isinstance(result.exception, TurnoutError)
        return
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert not OBEYED.search(output), output
    if as_json:
        assert any(EVIL in text for text in _texts(output)), output
    elif command != "steps":  # its columns are fixed
        assert SHOWN in output


def _texts(output: str) -> list[str]:
    """Every text in one JSON value, or in one value per line."""
    try:
        values = [json.loads(output)]
    except ValueError:
        values = [json.loads(line) for line in output.splitlines()]
    return [value for value in _values(values) if isinstance(value, str)]


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _values(item)
    elif isinstance(value, list):
        for item in value:
            yield from _values(item)
    else:
        yield value


def process(arguments: list[str], **environment: str) -> tuple[int, bytes]:
    """Exit code and all output of a real command on a terminal."""
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "turnout.cli.main", *arguments]
    variables = os.environ | {"TERM": "xterm-256color", "COLUMNS": "300", "LINES": "50"} | environment
    with subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=variables) as started:
        os.close(inner)
        output = b""
        try:
            while piece := os.read(outer, 65536):
                output += piece
        except OSError:  # the other end is closed
            pass
        os.close(outer)
        return started.wait(30), output


@pytest.mark.parametrize("command", ["watch", "services", "samples", "stop"])
def test_on_a_terminal_only_the_command_draws(url: str, command: str) -> None:
    """Rich's own sequences (colours, lines) are sent, but none from the text."""
    code, output = process([*COMMANDS[command], "--api-url", url])
    text = output.decode()
    assert code == {"watch": 1, "stop": 5}.get(command, 0), text
    for evil in ("\x1b]0;", "\x07", "\x9b", "\u202e", "\u2028", "\x1b[31mred"):
        assert evil not in text
    assert r"\x1b]0;title\x07\x1b[31mred\x9b2J\u202egnp." in text
    assert "[bold]c[/bold]:rocket:" in text


@pytest.mark.parametrize("command", ["watch", "services", "samples", "show", "stop"])
def test_a_terminal_that_knows_only_ascii_is_no_fault(url: str, command: str) -> None:
    strict = {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, output = process([*COMMANDS[command], "--api-url", url], **strict)
    text = output.decode("ascii")
    assert code == {"watch": 1, "stop": 5}.get(command, 0), text
    assert "Traceback" not in text
    if command != "show":
        assert r"\xe9" in text


def test_bars_fall_back_to_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    from turnout.cli.output import sparkline

    class Ascii:
        encoding = "ascii"

    assert sparkline([0, 1]) == "▁█"
    monkeypatch.setattr(sys, "stdout", Ascii())
    assert sparkline([0, 1]) == "_#"


@given(st.text())
def test_nothing_that_is_obeyed_remains(text: str) -> None:
    for cleaned in (in_line(text), in_lines(text)):
        assert not OBEYED.search(cleaned)
    assert "\n" not in in_line(text)
    readable = "".join(character for character in text if not OBEYED.match(character) and character != "\ufeff")
    if readable == text and not set("\n\t\u061c") & set(text):
        assert in_line(text) == text


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))
    )
)
def test_json_means_the_same(value: dict[str, str]) -> None:
    text = json_text(value)
    assert not OBEYED.search(text)
    assert json.loads(text) == value
    assert json.loads(terminal._ascii_json(text)) == value
    assert terminal._ascii_json(text).isascii()
