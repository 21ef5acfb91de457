"""Transport `http`, in vLLM's worker: reads the files like those of a shared folder, because the server has fetched
them to this machine (`services.rollout.weights.fetch`)."""

from __future__ import annotations

from services.rollout.weights.receive.store import StoreReceiver


class HttpReceiver(StoreReceiver):
    """Verifies the fetched folder, then reads it."""


RECEIVER = HttpReceiver
