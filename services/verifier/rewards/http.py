"""A reward served over HTTP: for judges that need a GPU, a service or another language (docs/rewards.md).

We POST {"question": {...}, "response": "...", "truncated": false} and expect status 200 with
{"reward": 0.5, "correct": false, "feedback": "..."}, of which only `reward` is required. Anything else, or no response,
is an infrastructure fault. After `FAILURES_TO_OPEN` consecutive failures the endpoint gets a pause and rollouts wait,
instead of using up their attempts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec

from services.contracts.errors import (
    ConfigurationError,
    InfrastructureError,
    QuestionError,
    check_secret,
    without_password,
)
from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.contracts.pauses import growing_pause
from services.contracts.proxies import client_options
from services.contracts.questions.forms import http_url
from services.runtime.http.outgoing import request
from services.runtime.settings import load
from services.verifier.rewards.registry import Opened, register_resource
from services.verifier.rewards.replies import shorten
from services.verifier.settings import EndpointSettings

FAILURES_TO_OPEN: Final = 5
LONGEST_PAUSE_SECONDS: Final = 60.0
LARGEST_REPLY_BYTES: Final = 1 << 20
_WORTH_ANOTHER_TRY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class EndpointReply(msgspec.Struct):
    """The body of an endpoint's response."""

    reward: float
    correct: bool | None = None
    """If unset, reward 1 counts as correct."""
    feedback: str = ""
    parsed_answer: str = ""
    format_ok: bool = True


class Breaker:
    """A circuit breaker that keeps requests away from a failing endpoint.

    `FAILURES_TO_OPEN` consecutive failures open it for `open_seconds`. Then a single request passes while the others
    wait: an answer closes the breaker, a failure opens it again.
    """

    def __init__(self, slots: asyncio.Semaphore, open_seconds: float) -> None:
        """`slots` bounds the requests in flight to all endpoints. What waits for this breaker holds none of them."""
        self.open_seconds = open_seconds
        self.num_failures = 0
        self._slots = slots
        self._open_until = 0.0
        self._probe = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        return self.num_failures >= FAILURES_TO_OPEN

    async def run(self, request: Callable[[], Awaitable[Judgement]]) -> Judgement:
        """The result of `request`, sent once the breaker lets it pass."""
        while True:
            async with self._slots:
                if not self.is_open:
                    return await self._observed(request)
            async with self._probe:
                if self.is_open:
                    await asyncio.sleep(max(0.0, self._open_until - time.monotonic()))
                    async with self._slots:
                        return await self._observed(request)

    async def _observed(self, request: Callable[[], Awaitable[Judgement]]) -> Judgement:
        try:
            judgement = await request()
        except EndpointError:
            self.num_failures += 1
            self._open_until = time.monotonic() + self.open_seconds
            raise
        except QuestionError:  # an answer, though not a judgement
            self.num_failures = 0
            raise
        self.num_failures = 0
        return judgement


class EndpointError(InfrastructureError):
    """The endpoint failed, and the request may be retried."""


@register_resource("http")
@asynccontextmanager
async def open_http() -> AsyncIterator[Opened]:
    """Open the endpoint from this process's settings."""
    reward = HttpReward(load(EndpointSettings))
    try:
        yield Opened(reward, waiting_for=reward.waiting_for)
    finally:
        await reward.close()


class HttpReward:
    """Calls the endpoint `TURNOUT_REWARD_URL`, or the question's own (`tests` {"url": ...}) on an allowed host."""

    def __init__(self, options: EndpointSettings, *, pause_seconds: float = 0.5, open_seconds: float = 5.0) -> None:
        """`pause_seconds` is the pause before the second attempt; it doubles with each further one.

        Raises:
            ConfigurationError: the token cannot be sent.
        """
        check_secret("TURNOUT_REWARD_TOKEN", options.token)
        self.options = options
        self.pause_seconds = pause_seconds
        self.open_seconds = open_seconds
        self._hosts = {host.strip() for host in options.hosts.split(",") if host.strip()}
        self._clients: dict[tuple[str, str], httpx.AsyncClient] = {}
        self._slots = asyncio.Semaphore(options.concurrency)
        self._breakers: dict[str, Breaker] = {}

    async def judge(self, question: Question, response_text: str, truncated: bool) -> Judgement:
        """The endpoint's judgement. Raises `InfrastructureError` once all attempts have failed."""
        url, headers = self._address(question)
        client = self._client(question, url)
        body = {"question": msgspec.to_builtins(question), "response": response_text, "truncated": truncated}
        content = msgspec.json.encode(body)
        host = urlsplit(url).netloc.rpartition("@")[2]
        breaker = self._breakers.setdefault(host, Breaker(self._slots, self.open_seconds))
        for attempt in range(1, self.options.attempts + 1):
            try:
                return await breaker.run(lambda: self._post(client, url, content, headers))
            except EndpointError:
                if attempt == self.options.attempts:
                    raise
                await asyncio.sleep(growing_pause(self.pause_seconds, attempt, LONGEST_PAUSE_SECONDS))
        raise AssertionError("unreachable: there is at least one attempt")

    def waiting_for(self) -> str:
        """The endpoint that gets a pause after failures; empty for none."""
        return next((f"the reward endpoint {host}" for host, one in self._breakers.items() if one.is_open), "")

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    def _client(self, question: Question, url: str) -> httpx.AsyncClient:
        """The client for the host of `url`, created on first use. Each host may need another proxy."""
        try:
            parts = httpx.URL(url)
            host = (parts.scheme, parts.host)
            if host not in self._clients:
                self._clients[host] = httpx.AsyncClient(follow_redirects=False, **client_options(url))
        except (ConfigurationError, httpx.InvalidURL) as error:
            remedy = error.remedy if isinstance(error, ConfigurationError) else "Correct the URL."
            what = error.message if isinstance(error, ConfigurationError) else str(error)
            raise QuestionError(
                f"Question {question.id} cannot be judged at {without_password(url)}: {what}", remedy=remedy
            ) from error
        return self._clients[host]

    def _address(self, question: Question) -> tuple[str, dict[str, str]]:
        """The URL and headers for this question. A dataset can name only allowed hosts."""
        headers = {"Content-Type": "application/json"}
        own = http_url(question)
        if own is None:
            if not self.options.url:
                raise QuestionError(
                    f"Question {question.id} has kind 'http', but no endpoint is configured.",
                    remedy="Set TURNOUT_REWARD_URL for the verifier.",
                )
            if self.options.token:
                headers["Authorization"] = f"Bearer {self.options.token}"
            return self.options.url, headers
        try:
            parts = urlsplit(own)
            allowed = parts.scheme in ("http", "https") and parts.hostname in self._hosts
        except ValueError:
            allowed = False
        if not allowed:
            raise QuestionError(
                f"Question {question.id} asks to be judged at {without_password(own)!r}, whose host is not allowed.",
                remedy="If you trust the host with replies, add it to TURNOUT_REWARD_HOSTS.",
            )
        return own, headers

    async def _post(self, client: httpx.AsyncClient, url: str, content: bytes, headers: dict[str, str]) -> Judgement:
        seconds, shown = self.options.timeout_seconds, f"Reward endpoint {without_password(url)}"
        try:
            response = await request(
                client, "POST", url, seconds=seconds, max_bytes=LARGEST_REPLY_BYTES, content=content, headers=headers
            )
        except httpx.HTTPError as error:
            raise EndpointError(
                f"{shown} failed: {error!r}.", remedy="Check that it is running and reachable."
            ) from error
        if response.status_code != 200:
            fault = EndpointError if response.status_code in _WORTH_ANOTHER_TRY else QuestionError
            text = response.content.decode("utf-8", "replace")
            if self.options.token:
                text = text.replace(self.options.token, "***")
            raise fault(f"{shown} responded with status {response.status_code}: {shorten(text, 200)}")
        try:
            reply = msgspec.json.decode(response.content, type=EndpointReply)
        except msgspec.DecodeError as error:
            raise QuestionError(
                f"{shown} sent an unexpected response: {error}.", remedy="See docs/rewards.md."
            ) from error
        return Judgement(
            reward=reply.reward,
            correct=reply.reward >= 1.0 if reply.correct is None else reply.correct,
            parsed_answer=reply.parsed_answer,
            format_ok=reply.format_ok,
            feedback=reply.feedback,
        )
