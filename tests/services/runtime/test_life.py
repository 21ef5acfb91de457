"""A service process: starts, beats, answers, stops; says in one sentence why it cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from services.contracts import streams
from services.runtime import presence as registry
from services.runtime.address import port_is_free
from services.runtime.presence import Presence, list_services

PROGRAM = """
import asyncio
from services.runtime.process import run_service

async def loops(service):
    service.presence.state = "ready"
    if {fail}:
        raise RuntimeError("out of steam")
    await asyncio.Event().wait()

run_service("verifier", loops)
"""


def start(redis_url: str, fail: bool = False, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(fail=fail)],
        env={**os.environ, "TURNOUT_REDIS_URL": redis_url, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


async def until_listed(redis: Redis) -> str:
    while not (records := await list_services(redis)):
        await asyncio.sleep(0.05)
    return records[0].url


@pytest.mark.parametrize("by_the_home", [False, True])
async def test_strangers_learn_only_that_it_lives(
    redis: Redis, valkey_url: str, tmp_path: Path, by_the_home: bool
) -> None:
    """The token may be in the environment, or in the home, where `turnout up` puts it."""
    given = {"TURNOUT_HOME": str(tmp_path)}
    if by_the_home:
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "service-token").write_text("of this deployment")
    else:
        given["TURNOUT_SERVICE_TOKEN"] = "of this deployment"
    process = start(valkey_url, False, **given)
    try:
        url = await asyncio.wait_for(until_listed(redis), 60)
        async with httpx.AsyncClient(base_url=url) as client:
            for headers in ({}, {"Authorization": "Bearer of another"}, {"Authorization": "of this deployment"}):
                refused = await client.get("/metrics", headers=headers)
                assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
            assert (await client.get("/openapi.json")).status_code == 404
            assert (await client.get("/healthz")).json().keys() == {"status", "service", "instance"}
            known = {"Authorization": "Bearer of this deployment"}
            assert (await client.get("/metrics", headers=known)).status_code == 200
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_service_beats_answers_and_leaves_no_trace(redis: Redis, valkey_url: str, host: str) -> None:
    if not port_is_free(host, 0):
        pytest.skip(f"this machine has no {host}")
    process = start(valkey_url, TURNOUT_INSTANCE="verifier-7", TURNOUT_HOST=host)
    try:
        url = await asyncio.wait_for(until_listed(redis), 60)
        [record] = await list_services(redis)
        assert (record.instance, record.kind, record.pid) == ("verifier-7", "verifier", process.pid)
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/healthz")).json()["instance"] == "verifier-7"
            assert (await client.get("/readyz")).status_code == 200
            assert "python_info" in (await client.get("/metrics")).text
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
        assert await list_services(redis) == []
    finally:
        process.kill()
        process.communicate()


async def test_a_loop_that_fails_ends_the_process_with_its_reason(valkey_url: str) -> None:
    _, errors = await asyncio.to_thread(start(valkey_url, fail=True).communicate, None, 60)
    assert "out of steam" in errors


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TURNOUT_REDIS_URL": "redis://127.0.0.1:1/0"}, ["No Redis or Valkey server answers", "turnout up"]),
        (
            {"TURNOUT_REDIS_URL": "redis://me:se/cret@127.0.0.1:1/0"},
            ["***@127.0.0.1:1/0: the URL cannot be read"],
        ),
        ({"TURNOUT_PORT": "99999"}, ["TURNOUT_PORT is '99999'", "less than or equal to 65535"]),
        (
            {"TURNOUT_ADVERTISE_URL": "http://::1:8401"},
            ["TURNOUT_ADVERTISE_URL is 'http://::1:8401'", "http://[::1]:8401"],
        ),
        ({"TURNOUT_HOST": "203.0.113.7", "TURNOUT_SERVICE_TOKEN": "x"}, ["Cannot listen on 203.0.113.7:0", "address"]),
        ({"TURNOUT_HOST": "0.0.0.0"}, ["TURNOUT_SERVICE_TOKEN is not set", "long random text"]),
    ],
)
def test_what_prevents_the_start_is_one_sentence_with_the_remedy(
    valkey_url: str, environment: dict[str, str], words: list[str]
) -> None:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(fail=False)],
        env={**os.environ, "TURNOUT_REDIS_URL": valkey_url, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    for word in words:
        assert word in process.stderr


def test_a_port_in_use_is_named(valkey_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = start(valkey_url, TURNOUT_PORT=port)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in errors


@pytest.mark.parametrize("text", ["../../../../tmp/made", "a}:config", "\udcff", ""])
async def test_an_assignment_that_is_no_run_id_is_none(redis: Redis, text: str) -> None:
    presence = Presence(redis, "learner", "learner-0", "")
    await redis.set(streams.assignment("learner-0"), text.encode(errors="surrogateescape"))
    assert await presence.assignment() is None
    await redis.set(streams.assignment("learner-0"), "demo-3f9c2a1b")
    assert await presence.assignment() == "demo-3f9c2a1b"


async def test_a_change_that_others_act_on_is_shown_before_the_next_beat(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "HEARTBEAT_SECONDS", 1e6)
    presence = Presence(redis, "learner", "learner-0", "")
    beating = asyncio.create_task(presence.beat())

    async def shown(state: str, version: int | None) -> None:
        async with asyncio.timeout(30):
            while [(record.state, record.weight_version) for record in await list_services(redis)] != [
                (state, version)
            ]:
                await asyncio.sleep(0.01)

    await shown("starting", None)
    presence.state = "idle"
    await shown("idle", None)
    presence.weight_version = 3
    await shown("idle", 3)
    beating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beating
    assert await list_services(redis) == []


async def test_nobody_speaks_for_another_instance(redis: Redis) -> None:
    """The API sends the services' token to the URL that a record names."""
    false = Presence(redis, "rollout", "rollout-0", "http://127.0.0.1:1").record()
    await redis.set(streams.service("verifier-0"), msgspec.json.encode(false))
    await Presence(redis, "rollout", "rollout-1", "http://127.0.0.1:2").publish()
    assert [record.instance for record in await list_services(redis)] == ["rollout-1"]


async def test_two_processes_of_one_name_say_so_until_one_is_gone(redis: Redis) -> None:
    first, second = (Presence(redis, "rollout", "rollout-0", url) for url in ("http://one:1", "http://two:2"))
    await first.publish()
    await second.publish()
    assert second.details == {}, "the first may be its dead predecessor"
    await first.publish()
    assert "http://two:2" in first.details["namesake"]
    await second.publish()
    assert "http://one:1" in second.details["namesake"]
    await second.publish()
    assert second.details == {}
