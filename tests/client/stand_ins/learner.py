"""A learner without a model: follows its assignment, reports steps, evaluations and a group of samples, and obeys stop
and pause.

Its first evaluation gives 25%, its last 50%; rewards rise with the steps.
A step takes `STEP_SECONDS`, from the environment.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import msgspec

from services.contracts import events, streams
from services.contracts.codec import encode
from services.contracts.states import RunState
from services.runtime.process import Service, run_service

STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0.05"))


class StandIn:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.redis = service.redis
        self.done: dict[str, int] = {}

    async def loops(self) -> None:
        presence = self.service.presence
        presence.state = "idle"
        while True:
            run_id = await presence.assignment()
            if run_id is None:
                presence.run_id = None
                presence.waits_for("a run")
                await asyncio.sleep(0.05)
                continue
            presence.run_id = run_id
            presence.waits_for("")
            await self.train(run_id)
            while await presence.assignment() == run_id and await self.desired(run_id) != "running":
                await asyncio.sleep(0.05)

    async def train(self, run_id: str) -> None:
        text = await self.redis.get(streams.config(run_id))
        if text is None:
            await asyncio.sleep(0.05)
            return
        steps = msgspec.json.decode(text)["training"]["steps"]
        step = self.done.get(run_id, 0)
        if step >= steps:
            await asyncio.sleep(0.05)
            return
        await self.state(run_id, "running")
        if step == 0:
            await self.evaluate(run_id, 0, 0.25)
        while step < steps:
            desired = await self.desired(run_id)
            if desired in ("stopped", "stopped_now"):
                if desired == "stopped":
                    await self.state(run_id, "stopping")
                    await self.checkpoint(run_id, step)
                return await self.state(run_id, "stopped")
            if desired == "paused":
                await self.state(run_id, "paused")
                while await self.desired(run_id) == "paused":
                    await asyncio.sleep(0.05)
                await self.state(run_id, "running")
                continue
            await asyncio.sleep(STEP_SECONDS)
            step += 1
            self.done[run_id] = step
            await self.step(run_id, step, steps)
            if step == 1:
                await self.samples(run_id, step)
        await self.evaluate(run_id, step, 0.5)
        await self.state(run_id, "succeeded")

    async def desired(self, run_id: str) -> str:
        value = await self.redis.get(streams.desired(run_id))
        return value.decode() if value else "running"

    async def send(self, event: events.Event) -> None:
        await self.redis.xadd(streams.EVENTS, {b"m": encode(event)})

    async def state(self, run_id: str, state: RunState) -> None:
        await self.send(events.RunStateChanged(run_id=run_id, at=time.time(), state=state))

    async def step(self, run_id: str, step: int, steps: int) -> None:
        metrics: dict[str, Any] = {
            "reward_mean": step / steps,
            "accuracy": step / steps,
            "routing_ratio_grpo": 0.6,
            "routing_ratio_sdpo": 0.4,
            "policy_entropy_nats": 0.5,
            "teacher_entropy_nats": 0.4,
            "staleness_mean": 0.5,
            "staleness_max": 1.0,
            "tokens_per_second": 1000.0,
            "seconds": STEP_SECONDS,
            "num_tokens": 100.0,
        }
        groups = {"fed": 4 * step, "trained": 4 * step, "in_flight": 0}
        await self.send(events.StepFinished(run_id=run_id, at=time.time(), step=step, metrics=metrics, groups=groups))

    async def samples(self, run_id: str, step: int) -> None:
        right = events.Sample(
            index=0, text="six <b>", tokens=["six", " <b>"], reward=1.0, correct=True, route="grpo", advantage=0.5
        )
        wrong = events.Sample(
            index=1, text="five", tokens=["five"], reward=0.0, correct=False, route="sdpo", advantage=-0.5
        )
        await self.send(
            events.SamplesTaken(
                run_id=run_id,
                at=time.time(),
                step=step,
                group_id="g-1",
                question_id="q-1",
                prompt="How many?",
                answer="six",
                samples=[right, wrong],
            )
        )

    async def checkpoint(self, run_id: str, step: int) -> None:
        folder = self.service.settings.runs_folder / run_id / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        await self.send(
            events.CheckpointWritten(run_id=run_id, at=time.time(), step=step, path=str(folder), bytes=0, seconds=0.0)
        )

    async def evaluate(self, run_id: str, step: int, accuracy: float) -> None:
        await self.send(
            events.EvaluationFinished(
                run_id=run_id,
                at=time.time(),
                step=step,
                split="validation",
                num_questions=64,
                num_samples=16,
                accuracy=accuracy,
                pass_at_k=0.75,
                questions=[events.QuestionCount("q-7", "math", 16, round(16 * accuracy))],
            )
        )


if __name__ == "__main__":
    run_service("learner", lambda service: StandIn(service).loops())
