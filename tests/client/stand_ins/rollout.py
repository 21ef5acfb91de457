"""A rollout server without an engine: it sends heartbeats and follows its assignment, but samples nothing."""

from __future__ import annotations

import asyncio

from services.runtime.process import Service, run_service


async def loops(service: Service) -> None:
    service.presence.state = "idle"
    while True:
        service.presence.run_id = await service.presence.assignment()
        service.presence.state = "ready" if service.presence.run_id else "idle"
        service.presence.weight_version = 0 if service.presence.run_id else None
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    run_service("rollout", loops)
