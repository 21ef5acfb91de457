"""Plans of a whole ring for tests: API and verifier are real, the others may be light stand-ins."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turnout.cli.local.plan import ONE_EACH, Child, Counts, Plan, make_plan


def stand_in(child: Child) -> Child:
    """The same instance, played by a light program that speaks the same contracts."""
    name = child.instance.rsplit("-", 1)[0]
    return dataclasses.replace(child, command=[sys.executable, "-m", f"tests.client.stand_ins.{name}"])


def light_plan(home: Path, counts: Counts = ONE_EACH, *, api_port: int = 0) -> Plan:
    """A whole ring with the real API and verifier; learner and rollout server are stand-ins."""
    plan = make_plan(home, counts, api_port=api_port)
    children = [
        stand_in(child) if child.instance.startswith(("learner", "rollout")) else child for child in plan.children
    ]
    return dataclasses.replace(plan, children=children)


def only(plan: Plan, *prefixes: str) -> Plan:
    """The plan with only some of its services."""
    return dataclasses.replace(plan, children=[item for item in plan.children if item.instance.startswith(prefixes)])


def until(done: Callable[[], Any], tick: Callable[[], None] = lambda: None, seconds: float = 60) -> None:
    """Wait for a condition. The deadline is long, and only ends a test that would fail anyway."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"timed out after {seconds} s"
        tick()
        time.sleep(0.05)
