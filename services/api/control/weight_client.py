"""Updates the weights of one rollout server by one HTTP call, in which the server runs vLLM's phases.

    verify every byte (sampling continues) -> pause (keep) -> start -> update -> finish -> resume -> compare checksums

The server starts a phase only if the previous one succeeded, and its answer is checked. If a phase after the
verification fails, the server stops sampling, because it is not known which weights it holds. The next attempt repeats
the whole update.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from services.contracts.errors import UnavailableError
from services.contracts.transports.registry import brings_folder
from services.runtime.http.outgoing import request

UPDATE_SECONDS = 1200.0
"""Timeout of one update; verifying and loading a large model's weights takes minutes."""
CHECK_SECONDS = 10.0
MAX_BYTES = 1 << 20
BUSY_STATUS = 409
SAMPLES_ON_STATUS = 422
"""The server rejected the update before it changed anything, and keeps sampling with its current weights."""


class PushFailedError(UnavailableError):
    """A rollout server did not take the weights."""

    title = "Weight update failed"

    def __init__(self, message: str, *, samples_on: bool = False) -> None:
        """`samples_on`: the server rejected the weights before it changed anything, and keeps sampling."""
        super().__init__(message)
        self.samples_on = samples_on


class TransportFailedError(PushFailedError):
    """A rollout server did not take the weights by the learner's fast transport; the store may still work."""


@dataclass(frozen=True, slots=True)
class Target:
    """The published weights of a run, as in `turnout:{run}:weights`."""

    version: int
    path: str
    checksum: str
    transfer: str = field(default="", compare=False)
    """The learner's offer of a fast transport, as JSON; empty if there is only the store."""

    @property
    def transport(self) -> str:
        """Name of the offered transport, as in `weights.transport`."""
        return str(msgspec.json.decode(self.transfer)["transport"]) if self.transfer else "store"

    @property
    def brings_folder(self) -> bool:
        """Whether the offer replaces the shared folder, so that there is no store to fall back to."""
        return brings_folder(self.transport)


class WeightClient:
    """Sends weight updates to rollout servers."""

    def __init__(self, client: httpx.AsyncClient, service_token: str) -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {service_token}"} if service_token else {}

    async def update(self, url: str, target: Target, *, fast: bool = False) -> None:
        """Update the server at `url` to `target`, whatever state an earlier attempt left it in. `fast` uses the
        transport that the learner offers.

        Raises:
            TransportFailedError: with `fast`, if the store may still work.
            PushFailedError: with the phase and the server's answer.
        """
        wanted: dict[str, Any] = {"version": target.version, "path": target.path, "checksum": target.checksum}
        if fast:
            wanted["transfer"] = {"attempt": uuid.uuid4().hex, "offer": msgspec.json.decode(target.transfer)}
        reply = await self._send("PUT", url, "/v1/weights", json=wanted)
        if fast and not target.brings_folder and not reply.is_success and reply.status_code != BUSY_STATUS:
            raise TransportFailedError(f"the server answered {reply.status_code}: {reply.text[:600]}")
        if not reply.is_success:
            raise PushFailedError(
                f"the server answered {reply.status_code}: {reply.text[:300]}",
                samples_on=reply.status_code == SAMPLES_ON_STATUS,
            )
        checksum = _body(reply).get("checksum")
        if checksum != target.checksum:
            await self._send("POST", url, "/v1/engine/pause", params={"mode": "keep", "clear_cache": "false"})
            raise PushFailedError(f"the server holds weights {checksum}, not {target.checksum}.")

    async def confirm(self, url: str, target: Target) -> bool:
        """Whether the server holds exactly `target` and is sampling. Raises `PushFailedError` if it does not answer."""
        weights = await self._read(url, "/v1/weights")
        paused = await self._read(url, "/v1/engine/is_paused")
        return weights.get("checksum") == target.checksum and paused.get("is_paused") is False

    async def _read(self, url: str, path: str) -> dict[str, Any]:
        reply = await self._send("GET", url, path, seconds=CHECK_SECONDS)
        if not reply.is_success:
            raise PushFailedError(f"{path} answered {reply.status_code}: {reply.text[:300]}")
        return _body(reply)

    async def _send(self, method: str, url: str, path: str, **arguments: Any) -> httpx.Response:
        arguments.setdefault("seconds", UPDATE_SECONDS)
        try:
            return await request(
                self._client, method, url.rstrip("/") + path, max_bytes=MAX_BYTES, headers=self._headers, **arguments
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PushFailedError(f"{path} failed: {type(error).__name__} {error}".rstrip()) from error


def _body(reply: httpx.Response) -> dict[str, Any]:
    try:
        body = reply.json()
    except ValueError as error:
        raise PushFailedError(f"{reply.url.path} returned a body that is not JSON.") from error
    return body if isinstance(body, dict) else {}
