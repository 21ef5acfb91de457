"""The policy of a run is asked from the run's page; a played rollout server answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.page.calls import get, post
from tests.page.conftest import Api
from tests.page.player import Player
from tests.page.visitor import Visitor

TOKENS = {"The": -0.01, " answer": -4.2, " <b>": -0.7}


class Answers(BaseHTTPRequestHandler):
    """Streams `TOKENS` as vLLM's serving classes do."""

    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(wanted)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for token, logprob in TOKENS.items():
            content = [{"token": token, "logprob": logprob, "top_logprobs": []}]
            self._chunk({"choices": [{"index": 0, "delta": {"content": token}, "logprobs": {"content": content}}]})
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        self._chunk({**end, "system_fingerprint": f"{wanted['model']}@3..4"})
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunk(self, values: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(values).encode() + b"\n\n")

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@contextmanager
def answering_by(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """URL of a server that answers like this."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def answering() -> Iterator[str]:
    with answering_by(Answers) as url:
        yield url


def test_a_policy_is_asked(api: Api, browser: Visitor, player: Player, run_text: str, answering: str) -> None:
    config = post(api, "/v1/run-files/check", {"text": run_text})["config"]
    run_id = post(api, "/v1/runs", config)["id"]
    browser.go(f"#/runs/{run_id}")
    browser.sees("The run can be asked once one of its rollout servers is ready.")
    browser.until(lambda: get(api, f"/v1/runs/{run_id}")["state"] == "starting", "the run starts")
    player.take(run_id)

    browser.write(".try textarea", "What is 17 + 25?")
    browser.press("button", "Ask")
    browser.sees("Rollout server rollout-0 does not answer")

    player.rollout_url = answering
    player.beat()
    browser.write(".try textarea", "What is 17 + 25?")
    browser.find(".try textarea").send_keys(Keys.CONTROL, Keys.ENTER)
    browser.sees(f"3 tokens, sampled by {run_id}@3..4")
    [asked] = Answers.asked
    assert (asked["model"], asked["messages"][0]["content"]) == (run_id, "What is 17 + 25?")
    assert "max_tokens" not in asked, "the run's own limit holds, which may be small"
    shown = browser.all(".answers .token")
    assert [(one.text.strip(), one.get_attribute("data-value")) for one in shown] == [
        ("The", "−0.010"),
        ("answer", "−4.200"),
        ("<b>", "−0.700"),
    ]
    shown[0].click()
    browser.keys(Keys.END)
    browser.sees('Token 3 of 3 " <b>": log-prob −0.7')
    browser.has_no_barriers()

    player.state("succeeded")
    browser.sees("An idle rollout server loads its weights when they are asked for.")
    assert browser.find(".try textarea").is_displayed()
