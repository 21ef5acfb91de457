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


def test_no_text_makes_a_line_of_its_own_or_commands_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "a\x1b[31m\x9b2J\x07\r\n2026-01-01 [info] forged \u202e\u2028b"
    for form in ("json", "text"):
        configure_logs(Settings.model_validate({"home": tmp_path, "log_format": form}), "api")
        log = get_logger("test")
        log.warning("judged", text=evil)
        log.warning(evil)
        logging.getLogger("library").warning("said %s", evil)
        lines = capsys.readouterr().err.split("\n")
        assert len(lines) == 4, lines
        assert not [line for line in lines if set("\x1b\x9b\x07\r\u202e\u2028") & set(line)]
        assert all("forged" in line for line in lines[:3])
        structlog.reset_defaults()
