"""Rewards served over HTTP, by a real server on loopback."""

from __future__ import annotations

import asyncio
import gzip
import re
import tracemalloc
from typing import Any

import pytest

from services.contracts.errors import ConfigurationError, InfrastructureError, QuestionError
from services.runtime.settings import load
from services.verifier.rewards.http import FAILURES_TO_OPEN, HttpReward
from services.verifier.settings import EndpointSettings, VerifierSettings
from tests.services.verifier.builders import question
from tests.services.verifier.conftest import Answer, Endpoint


def reward(url: str = "", **options: Any) -> HttpReward:
    return HttpReward(EndpointSettings(url=url, **options), pause_seconds=0.01, open_seconds=0.05)


async def test_the_endpoint_judges(endpoint: Endpoint) -> None:
    endpoint.answer = lambda number: (200, b'{"reward": 0.5, "feedback": "half", "more": 1}')
    found = await reward(endpoint.url, token="k").judge(question("http", "4"), "2+2=5", True)
    assert (found.reward, found.correct, found.feedback) == (0.5, False, "half")
    body, headers = endpoint.requests[0]
    assert (body["response"], body["truncated"], body["question"]["answer"]) == ("2+2=5", True, "4")
    assert headers["Authorization"] == "Bearer k"


async def test_a_failure_is_tried_again(endpoint: Endpoint) -> None:
    endpoint.answer = lambda number: (200, b'{"reward": 1}') if number == 3 else (503, b"busy")
    assert (await reward(endpoint.url).judge(question("http"), "x", False)).correct


@pytest.mark.parametrize(
    ("answer", "num_requests"),
    [
        ((503, b"busy"), 3),
        ((404, b"no such thing"), 1),
        ((302, b""), 1),
        ((200, b"not json"), 1),
        ((200, b'{"reward": "much"}'), 1),
        ((200, b'{"reward": 1, "feedback": "' + b"x" * (1 << 20) + b'"}'), 3),
    ],
)
async def test_any_other_response_is_a_fault(endpoint: Endpoint, answer: Answer, num_requests: int) -> None:
    endpoint.answer = lambda number: answer
    with pytest.raises(InfrastructureError):
        await reward(endpoint.url, attempts=3).judge(question("http"), "x", False)
    assert len(endpoint.requests) == num_requests


async def test_an_endpoint_that_drips_times_out(endpoint: Endpoint) -> None:
    endpoint.drips = True
    endpoint.answer = lambda number: (200, b" " * (1 << 19))
    with pytest.raises(InfrastructureError, match=r"timed out after 0\.2 s waiting for the complete response"):
        await reward(endpoint.url, attempts=1, timeout_seconds=0.2).judge(question("http"), "x", False)


async def test_a_response_may_be_compressed_once_and_is_bounded_while_it_is_decompressed(endpoint: Endpoint) -> None:
    endpoint.encoding = "gzip"
    endpoint.answer = lambda number: (200, gzip.compress(b'{"reward": 1}'))
    assert (await reward(endpoint.url).judge(question("http"), "x", False)).correct
    bomb = gzip.compress(b" " * (200 << 20))
    for encoding, data in [("gzip", bomb), ("gzip, gzip", gzip.compress(bomb)), ("br", b"x"), ("gzip", b"no gzip")]:
        endpoint.encoding, endpoint.answer = encoding, lambda number, data=data: (200, data)
        tracemalloc.start()
        with pytest.raises(InfrastructureError, match="endpoint"):
            await reward(endpoint.url, attempts=1).judge(question("http"), "x", False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16 << 20


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "socks5://127.0.0.1:1", "socks5h://u:p@h:1", "nonsense://x"])
async def test_the_environments_proxy_is_not_used_for_this_machine(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    asked = reward(endpoint.url, attempts=1, hosts="127.0.0.2,reward.test")
    assert (await asked.judge(question("http"), "x", False)).correct
    elsewhere = question("http", "", {"url": "http://reward.test/judge"})
    with pytest.raises(InfrastructureError) as caught:  # the proxy is unreachable, or of an unsupported kind
        await asked.judge(elsewhere, "x", False)
    assert "reward.test" in str(caught.value)
    assert "u:p" not in str(caught.value)
    assert ("NO_PROXY" in caught.value.remedy) == (not proxy.startswith("http"))
    await asked.close()


async def test_an_endpoint_that_is_down_is_a_fault() -> None:
    with pytest.raises(InfrastructureError, match=r"127\.0\.0\.1:1"):
        await reward("http://127.0.0.1:1/", attempts=2).judge(question("http"), "x", False)


async def test_many_failures_make_requests_wait_until_one_goes_through(endpoint: Endpoint) -> None:
    num_bad = 3 * FAILURES_TO_OPEN
    endpoint.answer = lambda number: (503, b"") if number <= num_bad else (200, b'{"reward": 1}')
    asked = reward(endpoint.url, attempts=4)
    found = await asyncio.gather(*(asked.judge(question("http"), str(i), False) for i in range(40)))
    assert all(judgement.correct for judgement in found)
    # Without the breaker, 40 rollouts would send more requests to a dead endpoint.
    assert len(endpoint.requests) <= 40 + 40 + num_bad


async def test_an_endpoint_that_is_down_does_not_delay_another(endpoint: Endpoint) -> None:
    asked = HttpReward(EndpointSettings(url=endpoint.url, hosts="127.0.0.1", concurrency=1), open_seconds=1000.0)
    down = question("http", "", {"url": "http://127.0.0.1:1/"})
    waiting = [asyncio.create_task(asked.judge(down, "x", False)) for _ in range(FAILURES_TO_OPEN + 1)]
    while asked.waiting_for() != "the reward endpoint 127.0.0.1:1":
        await asyncio.sleep(0.01)
    async with asyncio.timeout(20):
        assert (await asked.judge(question("http"), "x", False)).correct
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()


async def test_an_endpoint_that_refuses_a_question_has_answered(endpoint: Endpoint) -> None:
    endpoint.answer = lambda number: (503, b"") if number <= FAILURES_TO_OPEN else (404, b"no such question")
    asked = reward(endpoint.url, attempts=FAILURES_TO_OPEN + 1)
    with pytest.raises(QuestionError, match="no such question"):
        await asked.judge(question("http"), "x", False)
    assert asked.waiting_for() == ""


async def test_no_secret_is_shown(endpoint: Endpoint) -> None:
    endpoint.answer = lambda number: (400, b"Bearer t0ken is unknown")
    for asked, item in (
        (reward("http://ada:secret@127.0.0.1:1/", attempts=FAILURES_TO_OPEN), question("http")),
        (reward(endpoint.url.replace("://", "://ada:secret@") + "?api_key=secret", token="t0ken"), question("http")),
        (reward(), question("http", "", {"url": "http://ada:secret@example.org/"})),
    ):
        with pytest.raises(InfrastructureError) as caught:
            await asked.judge(item, "x", False)
        assert not {"secret", "t0ken"} & set(re.findall(r"\w+", f"{caught.value} {asked.waiting_for()}"))
    with pytest.raises(ConfigurationError, match="TURNOUT_REWARD_TOKEN") as refused:
        reward(endpoint.url, token="t0ken\n")
    assert "t0ken" not in str(refused.value)


async def test_a_dataset_names_allowed_hosts_only(endpoint: Endpoint) -> None:
    asked = question("http", "", {"url": endpoint.url})
    with pytest.raises(QuestionError, match="not allowed"):
        await reward("http://127.0.0.1:1/").judge(asked, "x", False)
    allowing = reward(hosts="example.org, 127.0.0.1", token="k")
    assert (await allowing.judge(asked, "x", False)).correct
    assert "Authorization" not in endpoint.requests[0][1]
    for url in ("file:///etc/passwd", "http://[", "http://127.0.0.1.example.org/", 3):
        with pytest.raises(QuestionError):
            await allowing.judge(question("http", "", {"url": url}), "x", False)


async def test_no_endpoint_is_a_fault_with_a_remedy() -> None:
    with pytest.raises(QuestionError, match="no endpoint") as caught:
        await reward().judge(question("http"), "x", False)
    assert "TURNOUT_REWARD_URL" in caught.value.remedy


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_REWARD_URL", "ftp://me:word@x")
    with pytest.raises(ConfigurationError, match=r"TURNOUT_REWARD_URL is 'ftp://\*\*\*@x'"):
        load(EndpointSettings)
    monkeypatch.setenv("TURNOUT_VERIFIER_WORKERS", "none")
    with pytest.raises(ConfigurationError, match="TURNOUT_VERIFIER_WORKERS"):
        load(VerifierSettings)
