"""State shared by the training thread, the writer thread and the Redis loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.learner.connections.progress_pipe import Progress
from services.learner.connections.redis_link import RunLink
from services.learner.program.writer import Writer
from services.runtime.settings import load_settings


def test_two_threads_report_without_undoing_each_others_changes(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training thread reports what it waits for while the writer reports what is published."""
    monkeypatch.setenv("TURNOUT_REDIS_URL", valkey_url)
    link = RunLink(load_settings(), "run")
    replace, reads, spoke = msgspec.structs.replace, threading.Event(), threading.Event()

    def slow(progress: Progress, **changes: Any) -> Progress:
        """The writer's change, based on what it read before training's report; a lock makes training wait."""
        if "weight_version" in changes:
            reads.set()
            spoke.wait(0.2)
        return replace(progress, **changes)

    monkeypatch.setattr(msgspec.structs, "replace", slow)
    writer = threading.Thread(target=lambda: link.report(weight_version=7))
    writer.start()
    reads.wait(60)
    link.report(step=3)
    spoke.set()
    writer.join(60)
    link.close()
    assert (link.progress.weight_version, link.progress.step) == (7, 3)


def test_the_writer_keeps_the_order_bounds_its_jobs_and_raises_their_faults() -> None:
    writer, done, may_end = Writer(max_pending=1), [], threading.Event()

    def job(number: int) -> Callable[[], None]:
        return lambda: done.append(number) if may_end.wait(60) else None

    for number in range(2):
        writer.submit(job(number))
    waiting = threading.Thread(target=lambda: (writer.wait_for_room(), done.append(-1)))
    waiting.start()
    waiting.join(0.05)
    assert done == []
    may_end.set()
    waiting.join(60)
    assert -1 in done
    writer.submit(job(2))
    writer.drain()
    assert [number for number in done if number >= 0] == [0, 1, 2]
    writer.submit(lambda: Path("/nowhere/at/all").unlink())
    with pytest.raises(FileNotFoundError):
        writer.drain()
    writer.close()
