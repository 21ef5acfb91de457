"""Caches responses until the database changes, so that many viewers of a run cost as much as one.

Handles GET requests behind the guard. A response is reused only while `Database.version` is what it was before the
response was made, so clients never read stale data. Concurrent requests for the same response wait for the first.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.storage.database import Database

KEPT_PATHS = re.compile(
    r"/v1/runs(/[^/]+(/(steps|evaluations|weight-pushes|samples))?)?"
    r"|/v1/evaluations(/[^/]+(/(questions|samples|difference))?)?"
    r"|/v1/experiments/[^/]+/results"
)
"""Responses that change only with `Database.version`: not checkpoints (disk), services and queues (Redis), or
streams."""
MAX_BYTES = 1 << 18
MAX_ANSWERS = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """One response as the application sent it."""

    start: Message
    body: bytes


class Answers:
    """Middleware that reuses responses while the database has not changed."""

    def __init__(self, app: ASGIApp, database: Database) -> None:
        self.app = app
        self.database = database
        self._version = -1
        self._answers: dict[bytes, asyncio.Future[Answer | None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or not KEPT_PATHS.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        if self._version != self.database.version or len(self._answers) >= MAX_ANSWERS:
            self._version, self._answers = self.database.version, {}
        key = scope["raw_path"] + b"?" + scope["query_string"]
        found = self._answers.get(key)
        answer = await asyncio.shield(found) if found is not None else await self._make(key, scope, receive, send)
        if answer is not None:
            await send(answer.start)
            await send({"type": "http.response.body", "body": answer.body})
        elif found is not None:  # the other request's response cannot be cached
            await self.app(scope, receive, send)

    async def _make(self, key: bytes, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """Let the application respond. None if the response has been sent already, because it cannot be cached."""
        answers, future = self._answers, asyncio.get_running_loop().create_future()
        answers[key] = future
        start: Message = {}
        body = b""
        passing = False

        async def collect(message: Message) -> None:
            nonlocal start, body, passing
            if message["type"] == "http.response.start":
                start = message
                return
            if not passing:
                body += message.get("body", b"")
                if start["status"] == 200 and len(body) <= MAX_BYTES:
                    return
                passing = True
                future.set_result(None)  # others need not wait until this client has read it all
                answers.pop(key, None)
                await send(start)
                message = {**message, "body": body}
            await send(message)

        answer = None
        try:
            await self.app(scope, receive, collect)
            answer = None if passing or not start else Answer(start, body)
        finally:
            if not passing:
                future.set_result(answer)
                if answer is None:
                    answers.pop(key, None)
        return answer
