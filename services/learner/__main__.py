"""Entry point of the learner service: `python -m services.learner`."""

from __future__ import annotations

from services.learner.service.supervisor import Supervisor
from services.runtime.process import Service, run_service


async def loops(service: Service) -> None:
    """Keep the training program of the assigned run going, until cancelled."""
    await Supervisor(service.redis, service.presence).run()


if __name__ == "__main__":
    run_service("learner", loops)
