"""Background loops."""

from __future__ import annotations

import asyncio

import pytest

from services.api.live import repeat as loops
from services.api.live.repeat import LoopStatus, repeat


async def test_a_loop_outlives_an_outage_of_days(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "MAX_PAUSE_SECONDS", 0.0)
    num_calls = 0

    async def work() -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 1100:
            raise asyncio.CancelledError
        raise ConnectionError

    with pytest.raises(asyncio.CancelledError):
        await repeat("scheduler", work, LoopStatus(), seconds=0.0)
