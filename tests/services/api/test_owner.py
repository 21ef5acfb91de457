"""One API process per database: others are rejected, a killed one can be replaced immediately, one without its lock
exits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from services.api.storage import writer_lock as module
from services.api.storage.writer_lock import own_database
from services.contracts.errors import ConflictError, UnavailableError
from services.runtime.settings import Settings
from tests.services.api.processes import API, api_process, environment_of

HOLD = """
import sys, time
from services.api.storage.writer_lock import own_database
from services.runtime.settings import load_settings
owner = own_database(load_settings())
print("mine", flush=True)
time.sleep(600)
"""
TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"


@pytest.mark.both_databases
def test_a_killed_holder_is_followed_at_once(settings: Settings) -> None:
    environment = environment_of(settings, INSTANCE="first")
    holder = subprocess.Popen([sys.executable, "-c", HOLD], env=environment, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mine\n"
        with pytest.raises(
            ConflictError, match=f"Another API process is using .*: first, pid {holder.pid} on "
        ) as caught:
            own_database(settings, wait_seconds=0)
        assert "TURNOUT_DATABASE_URL" in caught.value.remedy
    finally:
        holder.kill()
        holder.communicate()
    owner = own_database(settings)
    with pytest.raises(ConflictError, match=f"api-0, pid {os.getpid()} on "):
        own_database(settings, wait_seconds=0)
    owner.close()
    own_database(settings, wait_seconds=0).close()


def test_one_file_under_two_names_is_one_database(tmp_path: Path) -> None:
    (tmp_path / "here.db").touch()
    (tmp_path / "there.db").symlink_to("here.db")
    owner = own_database(Settings(database_url=f"sqlite:///{tmp_path}/here.db"))
    with pytest.raises(ConflictError):
        own_database(Settings(database_url=f"sqlite:///{tmp_path}/there.db"), wait_seconds=0)
    owner.close()


def test_databases_in_memory_are_everyones_own() -> None:
    owners = [own_database(Settings(database_url="sqlite://")) for _ in range(2)]
    assert len(owners) == 2


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"none/x\.db\.lock cannot be opened"):
        own_database(Settings(database_url=f"sqlite:///{tmp_path}/none/x.db"))


async def test_while_the_database_is_away_the_loss_is_not_told(
    settings: Settings, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An API that exited now could not start again, so it keeps reporting that the database is unavailable."""
    answers = [False, False, True]
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(module, "_can_connect", lambda _: answers.pop(0))
    owner = own_database(settings.model_copy(update={"database_url": postgres}))
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(TERMINATE)
    with pytest.raises(UnavailableError, match="was lost"):
        await owner.lost()
    assert answers == []
    owner.close()


def test_real_processes_on_postgresql(settings: Settings, postgres: str, tmp_path: Path) -> None:
    """The second is rejected with one sentence; the first exits on its own when it loses its lock."""
    environment = environment_of(settings, DATABASE_URL=postgres, INSTANCE="first")
    with api_process(environment, tmp_path / "log") as (first, client):
        second = subprocess.run([sys.executable, *API], env=environment, capture_output=True, text=True)
        assert second.returncode == 2
        assert "turnout api: Another API process is using the database" in second.stderr
        assert f"first, pid {first.pid} on" in second.stderr
        assert client.get("/v1/services").json()["items"][0]["state"] == "ready"
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(TERMINATE)
        assert first.wait(timeout=60) == 1
        assert "was lost; another API may have written since" in (tmp_path / "log").read_text()
