"""A run's ranks on several machines: learners with a home and an address each."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from fastapi import FastAPI
from redis.asyncio import Redis

from services.contracts import events, streams
from services.contracts.errors import ConfigurationError, UnavailableError
from services.contracts.heartbeat import HELPS, ServiceRecord
from services.learner import processes
from services.learner.checkpoint import CheckpointStore, Snapshot, State
from services.learner.connections.progress_pipe import EXIT_REFUSED, PIPE_VARIABLE, Progress, ProgressPipe
from services.learner.machines import helper as helper_module
from services.learner.machines.checkpoints import checkpoint_here
from services.learner.machines.crew import Crew, Fault
from services.learner.machines.helper import Helper
from services.learner.machines.protocol import Task, release
from services.learner.processes import Share
from services.learner.program.main import report_to_helper
from services.learner.service import Learner
from services.learner.settings import load_learner_settings
from services.runtime.address import free_port
from services.runtime.presence import Presence
from services.runtime.process import end
from services.runtime.settings import Settings
from services.runtime.weights.checkpoint_files import CorruptCheckpointError, checkpoint_folder
from tests.conftest import ROOT
from tests.services.api import fakes
from tests.services.api.fakes import served
from tests.services.learner.files import files_served
from tests.services.learner.ring import EventLog, FakeRing, bytecode_cached, put_run, run_values

TOKEN = "token of the services"
PATIENCE = 60.0
"""Seconds until a test that would fail ends: programs start slowly on a busy machine."""
eventually = partial(fakes.eventually, seconds=PATIENCE)
MAIN, HELPER = "127.0.0.2", "127.0.0.3"


@asynccontextmanager
async def service(redis_url: str, home: Path, instance: str, address: str, **settings: str) -> AsyncIterator[Any]:
    """A learner service, killed at the end."""
    environment = bytecode_cached(os.environ) | {
        "TURNOUT_REDIS_URL": redis_url,
        "TURNOUT_HOME": str(home),
        "TURNOUT_INSTANCE": instance,
        "TURNOUT_HOST": address,
        "TURNOUT_SERVICE_TOKEN": TOKEN,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        **{f"TURNOUT_{name.upper()}": value for name, value in settings.items()},
    }
    with home.with_suffix(".log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.learner", cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def record(redis: Redis, instance: str, seconds: float = 120.0, **wanted: Any) -> ServiceRecord:
    """A heartbeat that has these values."""
    async with asyncio.timeout(seconds):
        while True:
            value = await redis.get(streams.service(instance))
            if value is not None:
                found = msgspec.json.decode(value, type=ServiceRecord)
                if all(getattr(found, name) == value for name, value in wanted.items()):
                    return found
            await asyncio.sleep(0.05)


async def test_a_run_on_two_machines_survives_the_loss_of_a_rank(valkey_url: str, redis: Redis, tmp_path: Path) -> None:
    """Real ranks over gloo. `make test-hosts` has the same with machines that share nothing, and compares weights."""
    training = {"steps": 6, "num_ranks": 2, "max_staleness": 0, "zero_stage": 2}
    await put_run(redis, "run", run_values(training=training, checkpoint={"every_steps": 2}))
    ring, log, port = asyncio.create_task(FakeRing(redis, "run").run()), EventLog(redis), str(free_port(MAIN))
    main = service(
        valkey_url, tmp_path / "a", "learner-0", MAIN, port=port, learner_machines="2", learner_meeting_port="0"
    )
    helper = service(valkey_url, tmp_path / "b", "learner-1", HELPER, learner_main=f"http://{MAIN}:{port}")
    try:
        async with main, helper:
            assert HELPS in (await record(redis, "learner-1", state="idle")).details
            await redis.set(streams.assignment("learner-0"), "run")
            await log.wait_for(lambda seen: 3 in steps(seen))
            there = await record(redis, "learner-1", run_id="run")
            os.kill(int(there.details["pids"]), signal.SIGKILL)
            await log.wait_for(lambda seen: bool(last_state(seen, "succeeded", "failed")))
            await record(redis, "learner-1", run_id=None)
    finally:
        await end([ring], seconds=10)
    assert last_state(log.events, "succeeded")
    notes = [event.text for event in log.events if isinstance(event, events.Note)]
    assert any("learner-1 on" in text and "SIGKILL" in text for text in notes), notes
    assert any("Resumed from the checkpoint of step 2" in text for text in notes), notes
    assert steps(log.events) == {1, 2, 3, 4, 5, 6}
    final = [event for event in log.events if isinstance(event, events.StepFinished)][-1]
    assert (final.groups["trained"], final.groups["fed"], final.groups["in_flight"]) == (24, 24, 0)
    assert not (tmp_path / "b" / "runs").exists(), "a helper keeps nothing"


def last_state(seen: list[Any], *states: str) -> str:
    found = [event.state for event in seen if isinstance(event, events.RunStateChanged)]
    return found[-1] if found and found[-1] in states else ""


def steps(seen: list[Any]) -> set[int]:
    return {event.step for event in seen if isinstance(event, events.StepFinished)}


class Site:
    """A crew on a real port, and helpers whose ranks are `rank_program`."""

    def __init__(self, redis: Redis, folder: Path, num_helpers: int) -> None:
        self.redis, self.folder = redis, folder
        presence = Presence(redis, "learner", "learner-0", "http://127.0.0.1:1")
        self.crew = Crew(presence, num_helpers, 0)
        self.told: list[str] = []
        self.app = FastAPI()
        self.crew.add_routes(self.app, Settings(service_token=TOKEN))
        self.url = ""
        self._tasks: list[asyncio.Task[None]] = []

    def helper(self, instance: str, token: str = TOKEN, url: str = "") -> Helper:
        found = Helper(
            Presence(self.redis, "learner", instance, "http://127.0.0.1:2"), main=url or self.url, token=token
        )
        self._tasks.append(asyncio.create_task(found.run()))
        return found

    async def gather(self, num_ranks: int) -> Share:
        async def tell(text: str) -> None:
            self.told.append(text)

        return await asyncio.wait_for(self.crew.gather("run", num_ranks, tell), PATIENCE)

    def ranks(self) -> dict[str, dict[str, str]]:
        """What ranks were told, by rank, as they began."""
        return {path.name: json.loads(path.read_text()) for path in self.folder.glob("[0-9]*")}

    def running(self) -> list[str]:
        return [rank for rank, told in self.ranks().items() if psutil.pid_exists(int(told["PID"]))]

    def let_end(self, rank: str, code: int) -> None:
        (self.folder / f"end-{rank}").write_text(str(code))

    async def close(self) -> None:
        await end(self._tasks, seconds=30)


@pytest.fixture
async def site(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Site]:
    monkeypatch.setattr(processes, "PROGRAM", "tests.services.learner.rank_program")
    monkeypatch.setattr(helper_module, "REPORT_SECONDS", 0.02)
    monkeypatch.setattr("services.learner.machines.crew.LOOK_SECONDS", 0.02)
    monkeypatch.setenv("RANK_FOLDER", str(tmp_path))
    found = Site(redis, tmp_path, getattr(request, "param", 1))
    async with served(found.app) as url:
        found.url = url
        try:
            yield found
        finally:
            await found.close()


@pytest.mark.parametrize("site", [2], indirect=True)
async def test_ranks_are_spread_evenly_and_end_together(site: Site) -> None:
    helpers = [site.helper(f"learner-{number}") for number in (2, 1)]
    share = await site.gather(6)
    assert (share.num_ranks, share.first_rank, share.world_size) == (2, 0, 6)
    ranks = await eventually(lambda: site.ranks() if len(site.ranks()) == 4 else None)
    assert {rank: told["LOCAL_RANK"] for rank, told in ranks.items()} == {"2": "0", "3": "1", "4": "0", "5": "1"}
    for told in ranks.values():
        assert told["WORLD_SIZE"] == "6"
        assert told["TURNOUT_RUN_ID"] == "run"
        assert told["GLOO_SOCKET_IFNAME"] == "lo", "the interface that leads to rank 0"
        for name in ("MASTER_ADDR", "MASTER_PORT", "TURNOUT_ATTEMPT"):
            assert told[name] == share.variables[name]
    assert ranks["2"]["TURNOUT_INSTANCE"] == "learner-1"
    site.let_end("3", 9)
    fault = await asyncio.wait_for(site.crew.fault(), PATIENCE)
    assert (fault.code, fault.is_silent) == (9, False)
    assert fault.text == f"learner-1 on {socket.gethostname()}: exit code 9"
    await eventually(lambda: sorted(site.running()) == ["4", "5"])
    site.crew.dismiss()
    await eventually(lambda: not site.running())
    await eventually(lambda: all(helper._attempt == "" for helper in helpers))
    again = await site.gather(3)
    assert again.variables["TURNOUT_ATTEMPT"] != share.variables["TURNOUT_ATTEMPT"]


async def test_the_first_rank_of_a_machine_says_why_it_ends(site: Site) -> None:
    site.helper("learner-1")
    await site.gather(2)
    await eventually(lambda: site.running() == ["1"])
    site.let_end("1", EXIT_REFUSED)
    fault = await asyncio.wait_for(site.crew.fault(), PATIENCE)
    assert fault.code == EXIT_REFUSED
    assert fault.text.endswith(": rank 1 ends with 6")


def test_a_rank_on_another_machine_tells_its_service_why_the_run_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a pipe, rank 0 of the same machine is what counts."""
    mistake, fault = ConfigurationError("model.path is m.", remedy="Correct it."), RuntimeError("Broken pipe")
    assert report_to_helper(mistake, ProgressPipe()) == 1
    read_end, write_end = os.pipe()
    monkeypatch.setenv(PIPE_VARIABLE, str(write_end))
    assert report_to_helper(mistake, ProgressPipe()) == EXIT_REFUSED
    assert report_to_helper(fault, ProgressPipe()) == 1
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        said = [msgspec.json.decode(line, type=Progress).error for line in pipe]
    assert said == ["model.path is m. Correct it.", "RuntimeError: Broken pipe"]


async def test_a_fault_that_stays_ends_the_run_instead_of_starting_it_again(redis: Redis) -> None:
    learner = Learner(Presence(redis, "learner", "learner-0", ""), redis=redis)
    assert learner._blame(Fault(9, "learner-1 on b: exit code 9")) == 1
    assert learner._error == "learner-1 on b: exit code 9"
    with pytest.raises(ConfigurationError, match="no such folder"):
        learner._blame(Fault(EXIT_REFUSED, "learner-1 on b: model.path is m, but there is no such folder."))


async def test_ranks_that_hear_nothing_end_and_the_crew_counts_on_nobody_silent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cut cable does, on both of its ends."""
    helper = site.helper("learner-1")
    await site.gather(2)
    await eventually(lambda: site.running() == ["1"])
    monkeypatch.setattr(helper_module, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr("services.learner.machines.crew.SILENCE_SECONDS", 0.1)
    helper.main = "http://127.0.0.1:9"
    fault = await asyncio.wait_for(site.crew.fault(), PATIENCE)
    assert fault.is_silent
    assert "learner-1 on" in fault.text
    assert "no sign of life" in fault.text
    await eventually(lambda: not site.running())
    await eventually(lambda: "no answer from the main learner" in helper._reason)
    helper.main = site.url
    site.crew.dismiss()
    await eventually(lambda: helper._attempt == "")
    monkeypatch.setattr("services.learner.machines.crew.SILENCE_SECONDS", 10.0)
    await site.gather(2)


async def test_a_machine_that_was_restarted_has_lost_its_ranks(site: Site) -> None:
    helper = site.helper("learner-1")
    await site.gather(2)
    await eventually(lambda: site.running() == ["1"])
    helper._started_at += 1
    fault = await asyncio.wait_for(site.crew.fault(), PATIENCE)
    assert "was restarted" in fault.text


async def test_another_release_is_named_and_gets_no_ranks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    other = release() | {"torch": "1.0"}
    monkeypatch.setattr(helper_module, "release", lambda: other)
    helper = site.helper("learner-1")
    gathering = asyncio.create_task(site.gather(2))
    await eventually(lambda: site.told)
    assert f"learner-1 on {socket.gethostname()} has torch 1.0 instead of {release()['torch']}" in site.told[0]
    await eventually(lambda: "torch 1.0" in helper.presence.details.get("fault", ""))
    assert "1 of 1 other learner machines (learner-1" in site.crew.presence.record().waiting_for
    monkeypatch.setattr(helper_module, "release", release)
    await gathering
    assert len(site.told) == 1


async def test_what_cannot_work_is_said_before_ranks_start(site: Site) -> None:
    with pytest.raises(
        ConfigurationError, match=r"training.num_ranks is 3, which 2 machines cannot share.*multiple of 2"
    ):
        await site.gather(3)
    helper = site.helper("learner-1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        site.crew.port = taken.getsockname()[1]
        with pytest.raises(
            UnavailableError, match=r"cannot meet at 127.0.0.1:\d+: Address already in use.*LEARNER_MEETING_PORT"
        ):
            await site.gather(2)
    site.crew.presence.url, site.crew.port = "http://192.0.2.1:8401", 0
    with pytest.raises(UnavailableError, match=r"192.0.2.1.*Cannot assign.*TURNOUT_ADVERTISE_URL"):
        await site.gather(2)
    site.crew.presence.url = "http://127.0.0.1:1"
    await site.gather(2)
    await eventually(lambda: site.running() == ["1"])
    site.crew.dismiss()
    await eventually(lambda: helper._attempt == "")


async def test_a_meeting_point_out_of_reach_is_reported(site: Site) -> None:
    site.helper("learner-1")
    await eventually(lambda: site.crew._seen)
    report = site.crew._seen["learner-1"][0]
    site.crew._started["learner-1"] = report.started_at
    site.crew._tasks["learner-1"] = Task("attempt", "run", 1, 1, 2, "127.0.0.1", free_port())
    fault = await asyncio.wait_for(site.crew.fault(), PATIENCE)
    assert "cannot reach the ranks' meeting point 127.0.0.1:" in fault.text
    assert "TURNOUT_ADVERTISE_URL" in fault.text
    assert site.ranks() == {}


@pytest.mark.parametrize(
    ("token", "path", "says"),
    [
        ("another", "", "TURNOUT_SERVICE_TOKEN differs"),
        (TOKEN, "/elsewhere", "no learner with TURNOUT_LEARNER_MACHINES above 1"),
    ],
)
async def test_a_helper_says_why_it_gets_no_answer(site: Site, token: str, path: str, says: str) -> None:
    helper = site.helper("learner-1", token, site.url + path)
    await eventually(lambda: says in helper.presence.details.get("fault", ""))
    assert site.url in helper.presence.details["fault"]
    assert helper.presence.record().waiting_for == "the main learner"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"machines": "2"}, "TURNOUT_LEARNER_MACHINES is 2, but other machines cannot reach this one"),
        ({"machines": "2", "main": "http://10.0.0.1:8401"}, "has no machines of its own"),
        ({"main": "10.0.0.1"}, "'10.0.0.1', not http://<host>:<port>"),
        ({"main": "http://10.0.0.1"}, "not http://<host>:<port>"),
        ({"main": "http://10.0.0.1:8401"}, "TURNOUT_SERVICE_TOKEN is not"),
        ({"machines": "0"}, "TURNOUT_LEARNER_MACHINES is '0'"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"TURNOUT_LEARNER_{name.upper()}", value)
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        load_learner_settings(Settings())


async def test_a_checkpoint_is_fetched_where_nothing_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, here, run = tmp_path / "main", Settings(home=tmp_path / "here", service_token=TOKEN), Path("runs") / "run"
    named = checkpoint_folder(main / run, 4)

    def save(folder: Path, _: object) -> None:
        (folder / "model").write_bytes(b"m" * 100)

    store = CheckpointStore(main / run, save)
    store.write(Snapshot(State(1, "run", 4, 4, {}), {}, {}, {}, torch.get_rng_state()))
    elsewhere = tmp_path / "not mounted" / named.name
    with files_served(main, TOKEN) as url:
        monkeypatch.setenv("TURNOUT_LEARNER_MAIN", url)
        assert checkpoint_here(named, here, "run").folder == named, "a shared folder is read in place"
        found = checkpoint_here(elsewhere, here, "run")
        assert found.folder.is_relative_to(here.home / "fetched" / "run")
        assert (found.model_path / "model").read_bytes() == b"m" * 100
        assert found.state.step == 4
        (found.model_path / "model").write_bytes(b"?" * 100)
        with pytest.raises(CorruptCheckpointError):
            checkpoint_here(elsewhere, here, "run")
        assert (checkpoint_here(elsewhere, here, "run").model_path / "model").read_bytes() == b"m" * 100
