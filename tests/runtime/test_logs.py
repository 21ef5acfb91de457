"""Log lines name their service, run and group, whichever thread or task writes them."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from services.runtime.logs import configure_logs, get_logger, log_fields, set_log_fields
from services.runtime.settings import Settings


@pytest.fixture(autouse=True)
def _former_logs() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    set_log_fields(service=None, instance=None, run_id=None)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_every_line_names_service_run_and_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings(home=tmp_path, log_format="json"), "learner")
    log = get_logger("test")
    set_log_fields(run_id="run-1")
    thread = threading.Thread(target=lambda: log.info("from a thread"))
    thread.start()
    thread.join()

    async def judge(group_id: str) -> None:
        with log_fields(group_id=group_id, run_id="run-2"):
            await asyncio.sleep(0)
            log.warning("judged", reward=1.0)

    async def both() -> None:
        await asyncio.gather(judge("train-1"), judge("train-2"))

    asyncio.run(both())
    logging.getLogger("library").warning("a library's line")
    set_log_fields(run_id=None)
    log.info("no run")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["service"] for line in lines} == {"learner"}
    assert all(line["instance"] for line in lines)
    assert [line.get("run_id") for line in lines] == ["run-1", "run-2", "run-2", "run-1", None]
    assert [line.get("group_id") for line in lines] == [None, "train-1", "train-2", None, None]
