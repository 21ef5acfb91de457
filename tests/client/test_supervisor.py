"""The launcher restarts and stops what it started, completely, and never touches anything else."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import redis as redis_sync

from services.contracts.errors import ConflictError, UnavailableError
from services.runtime.address import port_is_free
from tests.client.rings import until
from tests.faults import soon_full
from turnout.cli.commands.doctor import check_queue_server
from turnout.cli.local.launcher import Deployment, status_rows
from turnout.cli.local.plan import Child, Counts, Plan, check_plan, make_plan
from turnout.cli.local.processes import (
    LAUNCH_VARIABLE,
    HomeState,
    ProcessRecord,
    alive,
    end_home,
    find,
    group_of,
    launched,
    read_state,
    record_of,
)
from turnout.cli.local.queue_server import write_configuration
from turnout.cli.local.supervisor import StartFailedError, Supervisor

SLEEPER = "import time; print('here', flush=True); time.sleep(600)"
PARENT = (
    "import subprocess, sys, time\n"
    f"subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True)\n"
    "time.sleep(600)"
)
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"


def plan_of(home: Path, **programs: str) -> Plan:
    """A plan whose services are small Python programs, with a real queue server."""
    plan = make_plan(home, api_port=0)
    environment = {LAUNCH_VARIABLE: plan.launch}
    children = [Child(name, [sys.executable, "-c", code], environment) for name, code in programs.items()]
    return dataclasses.replace(plan, children=children)


@pytest.fixture
def supervisor_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Supervisor]]:
    monkeypatch.setattr("turnout.cli.local.supervisor.RESTART_SECONDS_FIRST", 0.02)
    made: list[Supervisor] = []

    def make(**programs: str) -> Supervisor:
        made.append(Supervisor(plan_of(tmp_path / "home", **programs)))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop(grace_seconds=0.5)


def state_of(supervisor: Supervisor) -> HomeState:
    state = read_state(supervisor.plan.home)
    assert state is not None
    return state


def pid_of(supervisor: Supervisor, instance: str) -> int:
    running = next(item for item in supervisor.children if item.child.instance == instance)
    assert running.process is not None
    return running.process.pid


def test_everything_ends_also_children_that_left_the_group(supervisor_of) -> None:
    supervisor = supervisor_of(plain=SLEEPER, parent=PARENT, stubborn=STUBBORN)
    supervisor.start()
    until(lambda: len(launched(supervisor.plan.launch)) == 5)  # queue server, three services, one grandchild
    assert len(alive(state_of(supervisor))) == 5
    supervisor.stop(grace_seconds=0.5)
    assert launched(supervisor.plan.launch) == []
    assert read_state(supervisor.plan.home) is None


def test_a_dead_service_starts_again(supervisor_of) -> None:
    supervisor = supervisor_of(plain=SLEEPER)
    supervisor.start()
    first = pid_of(supervisor, "plain")
    supervisor.tick({"plain"})
    os.kill(first, signal.SIGKILL)
    until(lambda: any(item.num_restarts == 1 and item.process for item in supervisor.children), supervisor.tick)
    assert pid_of(supervisor, "plain") != first
    recorded = {record.instance: record for record in read_state(supervisor.plan.home).processes}
    assert recorded["plain"].pid == pid_of(supervisor, "plain")
    assert recorded["plain"].num_restarts == 1


def test_a_killed_queue_server_comes_back_with_what_it_held(supervisor_of) -> None:
    supervisor = supervisor_of(plain=SLEEPER)
    supervisor.start()
    with redis_sync.Redis.from_url(supervisor.plan.redis_url) as client:
        client.xadd("stream", {"m": "kept"})
        os.kill(pid_of(supervisor, "valkey"), signal.SIGKILL)
        until(lambda: supervisor.children[0].num_restarts == 1, supervisor.tick)
        supervisor._wait_for_queue()
        assert client.xlen("stream") == 1


def test_a_queue_server_whose_disk_is_full_says_so_until_there_is_room(
    supervisor_of: Callable[..., Supervisor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the table of `turnout up` and in `turnout doctor`; then it recovers with everything that it had
    acknowledged."""
    room = tmp_path / "room"
    room.write_text("64")
    monkeypatch.setattr(
        "turnout.cli.local.supervisor.write_configuration", lambda *where: soon_full(write_configuration(*where), room)
    )
    supervisor = supervisor_of(plain=SLEEPER)
    supervisor.start()
    deployment = Deployment(supervisor.plan)
    deployment.supervisor = supervisor
    kept: list[bytes] = []
    with redis_sync.Redis.from_url(supervisor.plan.redis_url) as client:
        with pytest.raises(redis_sync.ConnectionError):
            kept.extend(client.xadd("stream", {"m": "x" * 1000}) for _ in range(1000))
        until(lambda: supervisor.children[0].process is None, supervisor.tick)
        state = status_rows(deployment)[0]["state"]
        assert state.startswith("The queue server's ")
        assert "writing to the AOF file" in state
        [finding, *_] = check_queue_server(supervisor.plan.home)
        assert (finding.status, finding.remedy[:15]) == ("fail", "Free some space")
        room.write_text(str(1 << 30))
        until(lambda: supervisor.children[0].num_restarts == 1, supervisor.tick)
        supervisor._wait_for_queue()
        assert [message_id for message_id, _ in client.xrange("stream")] == kept
    assert [finding.status for finding in check_queue_server(supervisor.plan.home)] == ["ok"]


def test_a_service_that_names_its_fault_ends_the_start(supervisor_of) -> None:
    supervisor = supervisor_of(plain=SLEEPER, wrong="import sys; print('turnout wrong: no such thing.'); sys.exit(2)")
    supervisor.start()
    with pytest.raises(StartFailedError, match=r"wrong could not be started: turnout wrong: no such thing\."):
        until(lambda: False, supervisor.tick)
    supervisor.stop(grace_seconds=0.5)
    assert launched(supervisor.plan.launch) == []


def test_a_service_that_never_lives_is_given_up_after_three_tries(supervisor_of) -> None:
    supervisor = supervisor_of(crash="raise SystemExit(1)")
    supervisor.start()
    with pytest.raises(StartFailedError, match="crash"):
        until(lambda: False, supervisor.tick)
    assert supervisor.children[-1].num_restarts == 2


def test_a_home_in_use_is_refused(supervisor_of, tmp_path: Path) -> None:
    supervisor_of(plain=SLEEPER).start()
    with pytest.raises(ConflictError, match="is in use"):
        check_plan(plan_of(tmp_path / "home"))
    with pytest.raises(ConflictError):
        supervisor_of(plain=SLEEPER).start()


def test_no_space_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout.cli.local.plan.MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(UnavailableError, match=r"MiB are free on the disk .* Free some space"):
        Supervisor(plan_of(tmp_path / "home", plain=SLEEPER)).start()
    assert not (tmp_path / "home" / "queue").exists()


def test_other_children_of_the_same_program_are_left_alone(supervisor_of) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.DEVNULL)
    try:
        supervisor = supervisor_of(plain=SLEEPER)
        supervisor.start()
        assert stranger.pid not in {process.pid for process in alive(state_of(supervisor))}
        supervisor.stop(grace_seconds=0.5)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_down_ends_what_a_killed_supervisor_left(supervisor_of) -> None:
    supervisor = supervisor_of(plain=SLEEPER, parent=PARENT)
    supervisor.start()
    until(lambda: len(launched(supervisor.plan.launch)) == 4)
    home = supervisor.plan.home
    # The recorded supervisor is this process; give it a pid that does not exist, as after a kill -9.
    text = (home / "processes.json").read_text().replace(str(os.getpid()), "4194303")
    (home / "processes.json").write_text(text)
    assert set(end_home(home, grace_seconds=2)) == {"valkey", "plain", "parent"}
    assert launched(supervisor.plan.launch) == []


def test_a_pid_given_out_again_is_not_touched() -> None:
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.DEVNULL)
    try:
        record = record_of(process.pid, "own")
        assert find(record) is not None
        other = ProcessRecord(instance="own", pid=process.pid, started=record.started - 5)
        assert find(other) is None
    finally:
        process.kill()
        process.wait()
    assert find(record) is None


def test_a_process_is_known_whatever_is_done_to_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system derives start times from its boot time, which changes when the clock is set, for example after a
    sleep."""
    record = record_of(os.getpid(), "own")
    booted = psutil.boot_time()
    monkeypatch.setattr("psutil._psplatform.boot_time", lambda: booted + 3600)
    assert find(record) is not None
    assert find(msgspec.structs.replace(record, boot="another")) is None


def test_a_group_without_its_leader_is_ours_only_within_one_boot() -> None:
    """After a reboot the pid may be that of a foreign group whose leader has exited too."""
    leave = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])"
    leader = subprocess.Popen([sys.executable, "-c", leave], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        record = record_of(leader.pid, "own")
        assert leader.wait() == 0
        assert len(group_of(record)) == 1
        assert group_of(msgspec.structs.replace(record, boot="another")) == []
    finally:
        os.killpg(leader.pid, signal.SIGKILL)


def test_small_machines_compute_with_one_thread_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    plan = make_plan(tmp_path, Counts(rollout_servers=2), api_port=0)
    assert [child.instance for child in plan.children] == ["api-0", "verifier-0", "rollout-0", "rollout-1", "learner-0"]
    assert all(child.environment["OMP_NUM_THREADS"] == "1" for child in plan.children)
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert make_plan(tmp_path, api_port=0).children[0].environment["OMP_NUM_THREADS"] == "1"
    assert all(child.environment["TURNOUT_HOME"] == str(tmp_path) for child in plan.children)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    plan = make_plan(tmp_path, api_port=0)
    assert all("OMP_NUM_THREADS" not in child.environment for child in plan.children)


def test_the_services_may_listen_on_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not port_is_free("::1", 0):
        pytest.skip("this machine has no ::1")
    for host in ("::1", "[::1]", "::"):
        monkeypatch.setenv("TURNOUT_HOST", host)
        plan = make_plan(tmp_path, api_port=0)
        assert plan.api_url.startswith("http://[::1]:")
        check_plan(plan)


def test_an_address_of_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_HOST", "203.0.113.7")
    plan = make_plan(tmp_path, api_port=0)
    with pytest.raises(
        UnavailableError, match=r"TURNOUT_HOST is 203\.0\.113\.7, which is not an address of this machine"
    ):
        check_plan(plan)


def test_nobody_else_ever_reads_the_state_file(supervisor_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may contain a password of the queue server, so the temporary file must not be readable either."""
    modes: list[int] = []
    replace = os.replace

    def note(source: Path, target: Path) -> None:
        modes.append(os.stat(source).st_mode & 0o777)
        replace(source, target)

    monkeypatch.setattr(os, "replace", note)
    supervisor_of(plain=SLEEPER).start()
    assert set(modes) == {0o600}


def test_psutil_sees_our_environment() -> None:
    """`launched` reads the environment of other processes, which the system must allow for the user's own."""
    assert psutil.Process().environ()
