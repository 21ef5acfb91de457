"""Puts the verifier together: workers, sandbox, endpoint, judge, loops."""

from __future__ import annotations

from contextlib import AsyncExitStack

from services.contracts import streams
from services.contracts.errors import TurnoutError
from services.runtime.logs import get_logger
from services.runtime.process import Service
from services.runtime.queue.queue import Queue
from services.verifier import metrics
from services.verifier.judge import AsynchronousReward, Judge, Unavailable
from services.verifier.rewards.code import CodeReward
from services.verifier.rewards.http import HttpReward
from services.verifier.sandbox.sandbox import Sandbox
from services.verifier.service import Verifier
from services.verifier.settings import EndpointSettings, VerifierSettings, load
from services.verifier.workers.pool import WorkerPool

log = get_logger(__name__)


async def loops(service: Service) -> None:
    """Run the verifier until cancelled."""
    settings = load(VerifierSettings)
    async with AsyncExitStack() as stack:
        pool = WorkerPool(
            num_workers=settings.workers,
            cpu_seconds=settings.task_cpu_seconds,
            wall_seconds=settings.task_wall_seconds,
            memory_bytes=settings.worker_memory_mb << 20,
        )
        stack.push_async_callback(pool.close)
        endpoint = HttpReward(load(EndpointSettings))
        stack.push_async_callback(endpoint.close)
        code, layers = await _start_sandbox(settings.programs, stack)
        judge = Judge(pool, {"code": code, "http": endpoint})
        service.presence.details = {"kinds": ", ".join(judge.kinds), "sandbox": layers}
        service.presence.state = "ready"
        queue = Queue(service.redis, streams.GROUP_VERIFIER, service.presence.instance)
        await Verifier(queue, service.presence, judge, max_groups=settings.max_groups).run()


async def _start_sandbox(num_programs: int, stack: AsyncExitStack) -> tuple[AsynchronousReward, str]:
    """The reward that uses it, and which layers are active. Where it cannot start, only questions of code fail."""
    sandbox = Sandbox(num_programs)
    try:
        await sandbox.start()
    except TurnoutError as error:
        log.warning("no sandbox, so questions of kind code cannot be judged", error=str(error))
        return Unavailable(error.message, error.remedy), f"none: {error}"
    stack.push_async_callback(sandbox.close)
    for layer in sandbox.layers.active:
        metrics.LAYER.labels(layer).set(1)
    log.info("sandbox started", layers=sandbox.layers.active, advice=sandbox.layers.advice)
    return CodeReward(sandbox, num_programs), ", ".join(sandbox.layers.active)
