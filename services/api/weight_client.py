"""One weight update of one rollout server over HTTP: vLLM's four phases, every status checked, then the checksum.

    pause (keep) -> start -> update -> finish -> resume -> compare checksums

A server on which any phase failed stays paused: it must not sample from weights that nobody can name. The next try is a
whole update again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from services.contracts.errors import UnavailableError

PHASE_SECONDS = 600.0
"""Longest time for one phase; loading a large model's weights takes minutes."""
CHECK_SECONDS = 10.0


class PushFailedError(UnavailableError):
    """A rollout server did not take the weights."""

    title = "Weight update failed"


@dataclass(frozen=True, slots=True)
class Target:
    """The published weights of a run, as in `turnout:{run}:weights`."""

    version: int
    path: str
    checksum: str


class WeightClient:
    """Speaks to rollout servers."""

    def __init__(self, client: httpx.AsyncClient, service_token: str) -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {service_token}"} if service_token else {}

    async def update(self, url: str, target: Target) -> None:
        """Bring the server at `url` to `target`, whatever state an earlier try left it in.

        Raises:
            PushFailedError: names the phase and what the server said.
        """
        info = {"path": target.path, "checksum": target.checksum}
        try:
            await self._open(url)
        except PushFailedError:
            # An update that broke off (an API that was restarted in the middle of it) may still be open, and a server
            # with an open update takes no other. Carry that one to its end, whatever it says, and start afresh.
            await self._send("POST", url, "/v1/engine/update_weights", json={"update_info": info})
            await self._send("POST", url, "/v1/engine/finish_weight_update", json={})
            await self._open(url)
        await self._post(url, "update_weights", json={"update_info": info})
        await self._post(url, "finish_weight_update", json={"weight_version": str(target.version)})
        await self._require_checksum(url, target)
        await self._post(url, "resume")

    async def _open(self, url: str) -> None:
        await self._post(url, "pause", params={"mode": "keep", "clear_cache": "false"})
        await self._post(url, "start_weight_update")

    async def confirm(self, url: str, target: Target) -> bool:
        """Whether the server holds exactly `target` and is sampling. Raises `PushFailedError` where it is silent."""
        weights = await self._read(url, "/v1/weights")
        paused = await self._read(url, "/v1/engine/is_paused")
        return weights.get("checksum") == target.checksum and paused.get("is_paused") is False

    async def _require_checksum(self, url: str, target: Target) -> None:
        checksum = (await self._read(url, "/v1/weights")).get("checksum")
        if checksum != target.checksum:
            raise PushFailedError(f"the server holds weights {checksum}, not {target.checksum}.")

    async def _post(self, url: str, phase: str, **arguments: Any) -> None:
        reply = await self._send("POST", url, f"/v1/engine/{phase}", **arguments)
        if not reply.is_success:
            raise PushFailedError(f"{phase} answered {reply.status_code}: {reply.text[:300]}")

    async def _read(self, url: str, path: str) -> dict[str, Any]:
        reply = await self._send("GET", url, path, timeout=CHECK_SECONDS)
        if not reply.is_success:
            raise PushFailedError(f"{path} answered {reply.status_code}: {reply.text[:300]}")
        try:
            body = reply.json()
        except ValueError as error:
            raise PushFailedError(f"{path} did not answer with JSON.") from error
        return body if isinstance(body, dict) else {}

    async def _send(self, method: str, url: str, path: str, **arguments: Any) -> httpx.Response:
        arguments.setdefault("timeout", PHASE_SECONDS)
        try:
            return await self._client.request(method, url.rstrip("/") + path, headers=self._headers, **arguments)
        except httpx.HTTPError as error:
            raise PushFailedError(f"{path} failed: {type(error).__name__} {error}".rstrip()) from error
