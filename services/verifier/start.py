"""Puts the verifier together: pool, sandbox, endpoint, judge, loops."""

from __future__ import annotations

from services.contracts import streams
from services.runtime.life import Service
from services.runtime.queue import Queue
from services.verifier.judge import Judge
from services.verifier.service import Verifier
from services.verifier.settings import load_verifier_settings
from services.verifier.workers import WorkerPool


async def loops(service: Service) -> None:
    """Run the verifier until cancelled."""
    settings = load_verifier_settings()
    pool = WorkerPool(
        num_workers=settings.workers,
        cpu_seconds=settings.task_cpu_seconds,
        wall_seconds=settings.task_wall_seconds,
        memory_bytes=settings.worker_memory_mb << 20,
    )
    judge = Judge(pool, {})
    service.presence.details = {"kinds": ", ".join(judge.kinds)}
    service.presence.state = "ready"
    queue = Queue(service.redis, streams.GROUP_VERIFIER, service.presence.instance)
    try:
        await Verifier(queue, service.presence, judge, max_groups=settings.max_groups).run()
    finally:
        await pool.close()
