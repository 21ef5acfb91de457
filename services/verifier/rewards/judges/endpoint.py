"""Requests to the judge model: paced, bounded in number and time, repeated after faults of the endpoint.

All requests of a verifier share one pause. A failure makes everyone wait, longer with each further one; a 429 makes
everyone wait as long as it says, and is no failed attempt. A response gives up once nothing has been answered for
`deadline_seconds`, or after `attempts` failures of its own between which others were answered. It does not give up for
waiting behind others, nor quickly while the endpoint is down or starting.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx
import msgspec

from services.contracts.errors import (
    ConfigurationError,
    InfrastructureError,
    QuestionError,
    check_secret,
    without_password,
)
from services.contracts.pauses import growing_pause
from services.contracts.proxies import client_options
from services.runtime.http.outgoing import request
from services.runtime.logs import get_logger
from services.verifier import metrics
from services.verifier.rewards.replies import shorten
from services.verifier.settings import JudgeEndpointSettings

log = get_logger(__name__)
LONGEST_PAUSE_SECONDS: Final = 60.0
LARGEST_REPLY_BYTES: Final = 4 << 20
_WORTH_ANOTHER_TRY: Final = frozenset({408, 409, 425, 500, 502, 503, 504, 529})
_BUSY: Final = 429


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Completion(msgspec.Struct):
    """The part of a chat completion that we read."""

    choices: list[_Choice]
    usage: _Usage | None = None

    @property
    def text(self) -> str:
        return (self.choices[0].message.content or "") if self.choices else ""

    @property
    def is_cut(self) -> bool:
        return bool(self.choices) and self.choices[0].finish_reason == "length"


class _FailedError(InfrastructureError):
    """The endpoint failed, and the request may be repeated."""


class _BusyError(InfrastructureError):
    """The endpoint asks to wait."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


class Endpoint:
    """The endpoint of `TURNOUT_JUDGE_URL`."""

    def __init__(self, options: JudgeEndpointSettings, *, pause_seconds: float = 0.5) -> None:
        """`pause_seconds` is the pause after a failure; it doubles with each further one.

        Raises:
            ConfigurationError: the address, the key or the environment's proxy cannot be used.
        """
        check_secret("TURNOUT_JUDGE_KEY", options.key)
        self.options = options
        self.url = f"{options.url.rstrip('/')}/chat/completions"
        self._shown = f"Judge {without_password(self.url)}"
        self.pause_seconds = pause_seconds
        try:
            self._client = httpx.AsyncClient(follow_redirects=False, **client_options(self.url))
        except httpx.InvalidURL as error:
            raise ConfigurationError(
                f"TURNOUT_JUDGE_URL cannot be used: {error}.", remedy="Correct it.", field="TURNOUT_JUDGE_URL"
            ) from error
        self._headers = {"Content-Type": "application/json"}
        if options.key:
            self._headers["Authorization"] = f"Bearer {options.key}"
        self._slots = asyncio.Semaphore(options.concurrency)
        self._not_before = 0.0
        self._num_failures = 0
        self._answered_at = -math.inf

    async def close(self) -> None:
        await self._client.aclose()

    def waiting_for(self) -> str:
        """The endpoint, since its last answer was a failure; empty if it was none."""
        return "the judge model" if self._num_failures else ""

    async def ask(self, body: Mapping[str, Any]) -> Completion:
        """The endpoint's answer. Raises `InfrastructureError` if it fails too often, too long, or refuses."""
        content, began, num_failed, failed_at = msgspec.json.encode(body), time.monotonic(), 0, -math.inf
        while True:
            last = await self._try(content)
            if isinstance(last, Completion):
                return last
            if isinstance(last, _FailedError):
                num_failed += self._answered_at > failed_at or not num_failed
                failed_at = time.monotonic()
                if num_failed >= self.options.attempts:
                    raise last
            await self._pause(began, last)

    async def _try(self, content: bytes) -> Completion | InfrastructureError | None:
        """The answer, or what went wrong; None if a pause began while this waited for its turn."""
        async with self._slots:
            if time.monotonic() < self._not_before:
                return None
            began = time.monotonic()
            try:
                completion = await self._post(content)
            except (_FailedError, _BusyError) as error:
                self._hold_back(error)
                return error
            metrics.JUDGE_SECONDS.observe(time.monotonic() - began)
            self._num_failures, self._answered_at = 0, time.monotonic()
            return completion

    def _hold_back(self, error: InfrastructureError) -> None:
        """Pause all requests. Further failures of those that were in flight do not prolong the pause."""
        now = time.monotonic()
        if now < self._not_before:
            return
        if not self._num_failures:
            log.warning("judge unavailable", error=error.message)
        self._num_failures += 1
        pause = growing_pause(self.pause_seconds, self._num_failures, LONGEST_PAUSE_SECONDS)
        if isinstance(error, _BusyError) and error.seconds is not None:
            pause = min(error.seconds, self.options.deadline_seconds)
        self._not_before = now + pause

    async def _pause(self, began: float, last: InfrastructureError | None) -> None:
        """Wait until requests are allowed again. Raises `InfrastructureError` if that is beyond the deadline."""
        limit = self.options.deadline_seconds
        if self._not_before > max(began, self._answered_at) + limit:
            why = f": {last.message}" if last is not None else "."
            raise InfrastructureError(
                f"{self._shown} will not answer within the deadline of {limit:g} s{why}",
                remedy="Check that it is running and reachable, or raise TURNOUT_JUDGE_DEADLINE_SECONDS.",
            )
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))

    async def _post(self, content: bytes) -> Completion:
        seconds = self.options.timeout_seconds
        try:
            response = await request(
                self._client,
                "POST",
                self.url,
                seconds=seconds,
                max_bytes=LARGEST_REPLY_BYTES,
                content=content,
                headers=self._headers,
            )
        except httpx.HTTPError as error:
            metrics.JUDGE_REQUESTS.labels("failed").inc()
            raise _FailedError(
                f"{self._shown} failed: {error!r}.", remedy="Check that it is running and reachable."
            ) from error
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            completion = msgspec.json.decode(response.content, type=Completion)
        except msgspec.DecodeError as error:
            metrics.JUDGE_REQUESTS.labels("refused").inc()
            raise QuestionError(
                f"{self._shown} sent something other than a chat completion: {error}.",
                remedy="TURNOUT_JUDGE_URL must name an API in OpenAI's format, usually ending in /v1.",
            ) from error
        metrics.JUDGE_REQUESTS.labels("answered").inc()
        if completion.usage is not None:
            metrics.JUDGE_TOKENS.labels("prompt").inc(max(0, completion.usage.prompt_tokens))
            metrics.JUDGE_TOKENS.labels("response").inc(max(0, completion.usage.completion_tokens))
        return completion

    def _refusal(self, response: httpx.Response) -> InfrastructureError:
        """What a status other than 200 means."""
        status = response.status_code
        text = response.content.decode("utf-8", "replace")
        if self.options.key:
            text = text.replace(self.options.key, "***")
        said = f"{self._shown} responded with status {status}: {shorten(text, 200)}"
        if status == _BUSY:
            metrics.JUDGE_REQUESTS.labels("busy").inc()
            return _BusyError(said, retry_after(response.headers.get("Retry-After")))
        if status in _WORTH_ANOTHER_TRY:
            metrics.JUDGE_REQUESTS.labels("failed").inc()
            return _FailedError(said)
        metrics.JUDGE_REQUESTS.labels("refused").inc()
        return QuestionError(said, remedy=_remedy(status))


def retry_after(value: str | None) -> float | None:
    """Seconds that a header `Retry-After` asks to wait, given as a number or a date; None for neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None  # not NaN


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "Check TURNOUT_JUDGE_KEY."
    if status == 404:
        return "Check TURNOUT_JUDGE_URL and TURNOUT_JUDGE_MODEL."
    return "If it does not accept a field, set TURNOUT_JUDGE_RESPONSE_FORMAT or TURNOUT_JUDGE_EXTRA_BODY."
