"""Answers to reads of the database, kept until the database changes: many viewers of one run cost as much as one.

Consumes GET requests behind the guard. An answer is given again only while `Database.version` is that from before it
was made, so nobody ever reads what is no longer so. While one request makes an answer, others for the same wait for it.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.storage.database import Database

KEPT_PATHS = re.compile(r"/v1/runs(/[^/]+(/(steps|evaluations|weight-pushes|samples))?)?")
"""What the database alone decides; not checkpoints (the disk has a say), services and queues (Redis), or streams."""
MAX_BYTES = 1 << 18
MAX_ANSWERS = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as the application sent it."""

    start: Message
    body: bytes


class Answers:
    """Middleware: gives an answer again while the database has not changed."""

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
        elif found is not None:  # the other request's answer is not one to keep
            await self.app(scope, receive, send)

    async def _make(self, key: bytes, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """Let the application answer. None where the answer was sent on already, as it is not one to keep."""
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
