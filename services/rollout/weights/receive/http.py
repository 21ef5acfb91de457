"""Transport `http`, in vLLM's worker: the server has fetched the files (`services.rollout.weights.fetch`) and names
their folder on this machine, so they are read as from a shared one."""

from __future__ import annotations

from services.rollout.weights.receive.store import StoreReceiver


class HttpReceiver(StoreReceiver):
    """Verifies the fetched folder, then reads it."""


RECEIVER = HttpReceiver
