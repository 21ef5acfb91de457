"""Puts the verifier together: pool, sandbox, endpoint, judge, loops."""

from __future__ import annotations

from services.contracts import streams
from services.runtime.life import Service
from services.runtime.queue import Queue
from services.verifier.judge import Judge, Unavailable
from services.verifier.service import Verifier
from services.verifier.settings import load_verifier_settings


async def loops(service: Service) -> None:
    """Run the verifier until cancelled."""
    settings = load_verifier_settings()
    judge = Judge(Unavailable("There are no workers.", ""), {})
    service.presence.details = {"kinds": ", ".join(judge.kinds)}
    service.presence.state = "ready"
    queue = Queue(service.redis, streams.GROUP_VERIFIER, service.presence.instance)
    await Verifier(queue, service.presence, judge, max_groups=settings.max_groups).run()
