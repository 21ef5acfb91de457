"""Fixtures for parts of the verifier that are slow to start."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from services.verifier.sandbox.sandbox import Sandbox
from services.verifier.workers.pool import WorkerPool
from tests.conftest import ROOT


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[WorkerPool]:
    """Two workers with a short limit of CPU time (one answer takes about 0.01 s)."""
    made = WorkerPool(num_workers=2, cpu_seconds=0.1, wall_seconds=120.0, memory_bytes=2 << 30)
    yield made
    await made.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    made = Sandbox(2)
    await made.start()
    yield made
    await made.close()


@pytest.fixture(scope="session")
def published_rows() -> list[dict[str, Any]]:
    """Rows of the published benchmarks, if they are in the folder next to the repository; often none."""
    files = sorted((ROOT.parent / "shared" / "datasets").rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
