"""The client against a tiny real HTTP server: pages, problems, broken responses, event streams, keys."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from turnout import Client, ConfigurationError, ConflictError, NotFoundError, RunConfig, TurnoutError, UnavailableError
from turnout.cli.main import app

RUN = {"id": "r1", "name": "x", "state": "running", "brand_new_field": 1, "num_steps": 3}
KEY = {"id": "k1", "name": "Ada", "role": "read", "created_at": 1.0}
STREAM = ': alive\n\nid: 1\nevent: step\ndata: {"step":\ndata: 1}\n\nid: 2\nevent: note\ndata: {"text": "hi"}\n\n'


class Api(BaseHTTPRequestHandler):
    """Answers by path, and records the requests."""

    seen: list[tuple[str, str, dict[str, str], bytes]] = []
    streams: list[str] = []
    """Responses of `/v1/runs/r2/events`, one per connection."""
    states: list[str] = []
    """States of `/v1/runs/r2`, one per request."""

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.seen.append((self.command, self.path, dict(self.headers), self.rfile.read(length)))
        status, kind, body = self.answer()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET
    do_DELETE = do_GET

    def answer(self) -> tuple[int, str, bytes]:
        path, _, query = self.path.partition("?")
        if path == "/v1/runs/r1/steps":
            start = int(query.split("after=")[1].split("&")[0])
            items = [{"step": step, "at": 1.0, "metrics": {}, "new": 1} for step in range(start + 1, min(start + 3, 6))]
            return self.json({"items": items, "next_after": items[-1]["step"] if start + 2 < 5 else None})
        if path == "/v1/runs" and self.command == "GET":
            second = "cursor=two" in query
            return self.json({"items": [RUN], "next_cursor": None if second else "two"})
        if path == "/v1/runs/r1/events":
            return 200, "text/event-stream", STREAM.encode()
        if path == "/v1/keys" and self.command == "GET":
            return self.json({"items": [KEY]})
        if path == "/v1/keys":
            return self.json(KEY | {"key": "turnout_k1_text"}, 201)
        if path == "/v1/runs/r2/events":
            return 200, "text/event-stream", self.streams.pop(0).encode()
        if path == "/v1/runs/r2":
            return self.json(RUN | {"state": self.states.pop(0)})
        if path == "/v1/runs/html":
            return 200, "text/html", b"<html>"
        if path == "/v1/runs/odd":
            return self.json({"id": "r1"})
        if path.startswith("/v1/runs/status-"):
            status = int(path.removeprefix("/v1/runs/status-")[:3])
            problem = {"title": "T", "status": status, "detail": "It is so.", "remedy": "Do this.", "field": "a.b"}
            return status, "application/problem+json", json.dumps(problem).encode()
        if path == "/v1/runs/starting":
            return self.json({"detail": "Not Found"}, 404)
        if path == "/v1/runs/proxy":
            return 502, "text/html", b"<html>bad gateway</html>"
        return self.json(RUN, 201 if self.command == "POST" and path == "/v1/runs" else 200)

    def json(self, value: Any, status: int = 200) -> tuple[int, str, bytes]:
        return status, "application/json", json.dumps(value).encode()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # must not be used for this machine
    Api.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    with Client(f"http://127.0.0.1:{server.server_port}/", key="secret") as client:
        yield client
    server.shutdown()
    thread.join()
    server.server_close()


def test_pages_are_followed_to_the_end(client: Client) -> None:
    assert [step.step for step in client.steps("r1")] == [1, 2, 3, 4, 5]
    assert [step.step for step in client.steps("r1", after=3)] == [4, 5]
    assert len(list(client.runs(state="running"))) == 2
    assert all("state=running" in path for _, path, _, _ in Api.seen if path.startswith("/v1/runs?"))
    list(client.runs(config=["objective.name=grpo", "training.steps=3"]))
    assert "config=objective.name%3Dgrpo&config=training.steps%3D3" in Api.seen[-1][1]
    list(client.runs(tag="good", without_tag=["hidden", "bad"], field="training.steps", metric="reward"))
    asked = "tag=good&without_tag=hidden&without_tag=bad&field=training.steps&metric=reward"
    assert Api.seen[-1][1].split("&cursor=")[0].endswith(f"?{asked}"), "one value may be given as text"


def test_requests_carry_key_body_and_idempotency_key(client: Client) -> None:
    run = client.create_run({"name": "x"}, idempotency_key="k")
    assert (run.id, run.num_steps) == ("r1", 3)
    client.stop("r1", now=True)
    client.delete("a/../b")
    (_, _, headers, body), (_, stop, _, _), (method, delete, _, _) = Api.seen
    assert json.loads(body) == {"name": "x"}
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Idempotency-Key"] == "k"
    assert stop == "/v1/runs/r1/stop?now=true"
    assert (method, delete) == ("DELETE", "/v1/runs/a%2F..%2Fb")


def test_a_checked_configuration_is_sent_whole(client: Client) -> None:
    config = RunConfig.model_validate(
        {"name": "x", "model": {"path": "m"}, "data": {"train": "t"}, "training": {"steps": 3}}
    )
    client.create_run(config)
    body = json.loads(Api.seen[0][3])
    assert body["training"]["steps"] == 3
    assert RunConfig.model_validate(body) == config


def test_a_fork_sends_only_what_is_given(client: Client) -> None:
    client.fork("r1")
    client.fork("r1", checkpoint=3, name="n", changes={"training": {"steps": 9}}, idempotency_key="k")
    (_, path, _, first), (_, _, headers, second) = Api.seen
    assert path == "/v1/runs/r1/fork"
    assert json.loads(first) == {}
    assert json.loads(second) == {"checkpoint": 3, "name": "n", "changes": {"training": {"steps": 9}}}
    assert headers["Idempotency-Key"] == "k"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, ConfigurationError),
        (422, ConfigurationError),
        (404, NotFoundError),
        (409, ConflictError),
        (429, UnavailableError),
        (500, TurnoutError),
        (503, UnavailableError),
    ],
)
def test_problems_become_named_errors(client: Client, status: int, kind: type[TurnoutError]) -> None:
    with pytest.raises(kind) as caught:
        client.run(f"status-{status}")
    assert type(caught.value) is kind
    remedy = "Set TURNOUT_API_KEY to a key of this deployment." if status == 401 else "Do this."
    assert (caught.value.message, caught.value.remedy, caught.value.field) == ("It is so.", remedy, "a.b")


@pytest.mark.parametrize("run_id", ["html", "odd", "proxy", "starting"])
def test_answers_that_are_not_the_apis_are_told_as_such(client: Client, run_id: str) -> None:
    with pytest.raises(UnavailableError, match="answer"):
        client.run(run_id)


def test_events_are_read_whole(client: Client) -> None:
    events = list(client.events("r1", after="0"))
    assert [(event.id, event.type, event.data) for event in events] == [
        ("1", "step", {"step": 1}),
        ("2", "note", {"text": "hi"}),
    ]
    assert Api.seen[0][2]["Last-Event-ID"] == "0"
    with pytest.raises(NotFoundError):
        list(client.events("status-404"))


def test_events_end_at_line_feeds_alone(client: Client) -> None:
    Api.streams = ['id: 1\nevent: note\ndata: {"text": "a\u2028b\u0085c"}\n\n']
    assert [event.data for event in client.events("r2")] == [{"text": "a\u2028b\u0085c"}]


@pytest.mark.parametrize(
    ("url", "key", "says"),
    [("http://x:port", "", "'http://x:port'"), ("x", "", "'x'"), (None, "hunter2\n", "TURNOUT_API_KEY")],
)
def test_what_no_request_can_be_made_with_is_named(url: str | None, key: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        Client(url, key)
    assert "hunter2" not in str(caught.value)


def test_a_proxy_that_cannot_be_used_is_named_and_does_not_catch_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy.test:1")
    Client("http://127.0.0.1:8400").close()
    with pytest.raises(ConfigurationError, match=r"socks5://proxy\.test:1, cannot be used"):
        Client("http://api.test:8400")


def test_following_goes_on_behind_the_last_event_after_a_break(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout.client.calls.LONGEST_WAIT_SECONDS", 0.0)
    Api.streams = [
        'id: 1\nevent: step\ndata: {"step": 1}\n\nid: 2\nevent: state\ndata: {"state": "stopped"}\n\n',
        'id: 3\nevent: state\ndata: {"state": "running"}\n\nid: 4\nevent: state\nda',  # cut off, so it is sent again
        'id: 4\nevent: state\ndata: {"state": "succeeded"}\n\n',
    ]
    Api.states = ["running", "running", "succeeded"]  # it was resumed after the stop
    assert [event.id for event in client.follow("r2")] == ["1", "2", "3", "4"]
    asked = [headers.get("Last-Event-ID") for _, path, headers, _ in Api.seen if path.endswith("/events")]
    assert asked == [None, "2", "3"]
    with pytest.raises(NotFoundError):
        list(client.follow("status-404"))


def test_keys_are_made_listed_and_revoked_by_command(client: Client) -> None:
    def turnout(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["keys", *arguments, "--api-url", client.url], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    assert turnout("create", "Ada", "--role", "operate") == "turnout_k1_text\n"
    assert turnout("list").splitlines()[1].startswith("k1\tAda\tread\t")
    assert json.loads(turnout("list", "--json")) == [KEY]
    assert turnout("revoke", "k1") == "k1 is revoked.\n"
    (_, _, _, made), *_, (method, path, _, _) = Api.seen
    assert json.loads(made) == {"name": "Ada", "role": "operate"}
    assert (method, path) == ("DELETE", "/v1/keys/k1")
