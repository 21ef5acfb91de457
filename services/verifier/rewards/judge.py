"""A model judges replies by a rubric, through an API in OpenAI's format (docs/rewards.md).

The request is greedy and has a seed, and its verdict is kept under a digest of the request. What the model answers is
trusted no further than its form: one score within the scale, and a short text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from services.contracts.errors import InfrastructureError, QuestionError, UnavailableError, without_password
from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.contracts.questions.forms import JudgeSettings, judge_settings
from services.runtime.connection import connect
from services.runtime.settings import load, load_settings
from services.verifier import metrics
from services.verifier.rewards.judges.answers import Answer, UnreadableError, read_answer
from services.verifier.rewards.judges.cache import Cache, digest
from services.verifier.rewards.judges.endpoint import Endpoint
from services.verifier.rewards.judges.prompt import FORMATS, messages
from services.verifier.rewards.registry import Opened, register_resource
from services.verifier.rewards.replies import shorten
from services.verifier.settings import JudgeEndpointSettings


@register_resource("judge")
@asynccontextmanager
async def open_judge() -> AsyncIterator[Opened]:
    """Open the endpoint and the cache from this process's settings."""
    options = load(JudgeEndpointSettings)
    if not options.url:
        yield Opened(NoJudge())
        return
    if not options.model:
        raise UnavailableError(
            "TURNOUT_JUDGE_URL is set, but TURNOUT_JUDGE_MODEL is not.", remedy="Set it for the verifier."
        )
    endpoint = Endpoint(options)
    async with connect(load_settings().redis_url) as redis:
        try:
            yield Opened(
                JudgeReward(endpoint, Cache(redis)),
                {"judge": f"{options.model} at {without_password(options.url)}"},
                endpoint.waiting_for,
                has_threshold=True,
            )
        finally:
            await endpoint.close()


class NoJudge:
    """Takes the place of a judge in deployments that have none, which is no fault until a question needs it."""

    async def judge(self, question: Question, response_text: str, truncated: bool) -> Judgement:
        raise QuestionError(
            f"Question {question.id} needs a judge, but no endpoint is configured.",
            remedy="Set TURNOUT_JUDGE_URL and TURNOUT_JUDGE_MODEL for the verifier.",
        )


class JudgeReward:
    """Asks the judge model, unless its verdict is known."""

    def __init__(self, endpoint: Endpoint, cache: Cache) -> None:
        self._endpoint = endpoint
        self._cache = cache
        self._extra: dict[str, Any] = json.loads(endpoint.options.extra_body)
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def judge(self, question: Question, response_text: str, truncated: bool) -> Judgement:
        """The judgement. Raises `InfrastructureError` if the endpoint fails, or answers nothing that can be read."""
        settings = judge_settings(question)
        body = self.body(messages(question, settings, response_text, truncated), self._endpoint.options.seed)
        answer = await self._answer(body, settings)
        lowest, highest = settings.scale
        reward = (answer.score - lowest) / (highest - lowest)
        correct = reward >= settings.threshold
        return Judgement(
            reward=reward,
            correct=correct,
            parsed_answer=f"{answer.score:g} of {highest:g}",
            format_ok=True,
            feedback="" if correct else answer.feedback,
        )

    def body(self, conversation: list[dict[str, str]], seed: int) -> dict[str, Any]:
        """The request's body."""
        options = self._endpoint.options
        body = {
            "model": options.model,
            "messages": conversation,
            "temperature": 0,
            "seed": seed,
            "max_tokens": options.max_tokens,
            "response_format": FORMATS[options.response_format],
            **self._extra,
        }
        return {name: value for name, value in body.items() if value is not None}

    async def _answer(self, body: dict[str, Any], settings: JudgeSettings) -> Answer:
        """The answer that is kept for this request, or the endpoint's. Equal requests are sent once."""
        key = digest(body)
        async with self._locks.setdefault(key, asyncio.Lock()):
            found = await self._cache.find(key)
            if found is not None:
                metrics.JUDGE_VERDICTS.labels("cached").inc()
                return found
            answer = await self._cache.keep(key, await self._ask(body, settings))
            metrics.JUDGE_VERDICTS.labels("asked").inc()
            return answer

    async def _ask(self, body: dict[str, Any], settings: JudgeSettings) -> Answer:
        """Ask until an answer can be read, each time with another seed, since the same one would give the same."""
        fault, text = "", ""
        for attempt in range(self._endpoint.options.attempts):
            completion = await self._endpoint.ask(
                {**body, **({"seed": body["seed"] + attempt} if "seed" in body else {})}
            )
            text = completion.text
            try:
                return read_answer(text, settings.scale)
            except UnreadableError as error:
                fault = "is cut off at TURNOUT_JUDGE_MAX_TOKENS" if completion.is_cut else str(error)
                metrics.JUDGE_REQUESTS.labels("unreadable").inc()
        raise InfrastructureError(
            f"The judge's answer {fault}: {shorten(text, 200)!r}.", remedy="Try the rubric and the judge model by hand."
        )
