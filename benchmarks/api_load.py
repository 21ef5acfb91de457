"""The API under load during a run: event streams lose nothing, responses stay fast, and the run continues.

Phases with and without load alternate within one run, so that the ratio of their speeds is the load's doing. The load
comes from this process over loopback and shares the machine's cores with the run, so what it costs itself is told too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tools.deployment import demo_config, deployment, patiently
from turnout import Client

EVENT_ID = re.compile(rb"\nid: (\d+)\n")
NUM_CONNECTIONS = 10
"""Connections that share the requests, as browsers and dashboards would hold."""
CONNECT_SECONDS = 0.02


class Stream(asyncio.Protocol):
    """One event-stream client: keeps the ids of what it was sent."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.ids: list[int] = []
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        whole, end, rest = (self._rest + data).rpartition(b"\n\n")
        self.ids += [int(number) for number in EVENT_ID.findall(whole)]
        self._rest = rest if end else self._rest + data


@dataclass(slots=True)
class Phase:
    """What one loaded phase saw."""

    began: float = 0.0
    ended: float = 0.0
    api_seconds: float = 0.0
    """CPU time of the API's process."""
    own_seconds: float = 0.0
    """CPU time of this process."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from the moment at which a request was due to its whole answer."""
    num_errors: int = 0
    streams: list[list[int]] = field(default_factory=list)


def request(host: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


async def load(url: str, run_id: str, last_id: int, options: argparse.Namespace, cpu: Callable[[], float]) -> Phase:
    """Streams from behind `last_id`, and once they are there requests at a steady rate, for one phase."""
    address, loop = urlsplit(url), asyncio.get_running_loop()
    host, name, port = address.netloc, address.hostname, address.port
    assert name, url
    assert port, url
    asks = request(host, f"/v1/runs/{run_id}/events", f"Last-Event-ID: {last_id}", "Accept: text/event-stream")
    made = []
    for _ in range(options.streams):  # not all at once: people do not open their pages in one instant
        made.append(await loop.create_connection(lambda: Stream(asks), name, port))
        await asyncio.sleep(CONNECT_SECONDS)
    paths = [
        "/v1/runs?limit=30",
        f"/v1/runs/{run_id}",
        "/v1/services",
        f"/v1/queues?run_id={run_id}",
        f"/v1/runs/{run_id}/steps?after={options.after_step}",
        f"/v1/runs/{run_id}/evaluations",
    ]
    asked = [request(host, path) for path in paths]
    phase = Phase()
    await asyncio.sleep(1.0)
    started, phase.began, spent, own = loop.time(), time.time(), cpu(), time.process_time()
    count = int(options.seconds * options.rate)
    await asyncio.gather(
        *(
            _ask(name, port, asked, started, options.rate, range(i, count, NUM_CONNECTIONS), phase)
            for i in range(NUM_CONNECTIONS)
        )
    )
    phase.ended, phase.api_seconds, phase.own_seconds = time.time(), cpu() - spent, time.process_time() - own
    for transport, stream in made:
        transport.close()
        phase.streams.append(stream.ids)
    return phase


async def _ask(
    host: str, port: int, asked: list[bytes], started: float, rate: float, numbers: range, phase: Phase
) -> None:
    """One connection's share of the requests, each at its time; a late answer delays the next, which counts as late."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(host, port)
    for number in numbers:
        due = started + number / rate
        await asyncio.sleep(max(0.0, due - loop.time()))
        writer.write(asked[number % len(asked)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        await reader.readexactly(int(length[1]))
        phase.num_errors += not head.startswith(b"HTTP/1.1 200")
        phase.latencies.append(loop.time() - due)
    writer.close()


def lost_and_repeated(phase: Phase, known: list[int], last_id: int) -> tuple[int, int]:
    """How many events streams missed, and how many they got twice, up to the last one each got."""
    lost = repeated = 0
    for ids in phase.streams:
        due = [number for number in known if last_id < number <= (ids[-1] if ids else known[-1])]
        repeated += len(ids) - len(set(ids))
        lost += len(set(due) - set(ids))
    return lost, repeated


def main() -> None:
    """Print the section; `--pairs` and `--seconds` shorten it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--pairs", type=int, default=6, help="phases without and with load")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a phase")
    options = parser.parse_args()
    os.environ["TURNOUT_RATE_LIMIT"] = ""  # all clients have one address here
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder, deployment(Path(folder)) as client:
        switches = {"every_steps": None, "before_training": False, "after_training": False}
        run_id = client.create_run(demo_config(training={"steps": 100_000}, evaluation=switches)).id
        patiently(lambda: client.run(run_id).step, lambda step: step >= 20)  # warm
        report(*measure(client, run_id, options), options)
        client.stop(run_id, now=True)


def measure(client: Client, run_id: str, options: argparse.Namespace) -> tuple[list[Phase], dict[str, float]]:
    """The phases, and figures over all of them."""
    api = psutil.Process(next(item.pid for item in client.services() if item.kind == "api"))
    phases, sums = [], dict.fromkeys(("free steps", "free", "loaded steps", "loaded", "api", "api idle", "here"), 0.0)
    sums["lost"] = sums["repeated"] = sums["events"] = 0

    def cpu() -> float:
        times = api.cpu_times()
        return float(times.user + times.system)

    for _ in range(options.pairs):
        began, spent = time.time(), cpu()
        time.sleep(options.seconds)
        ended = time.time()
        sums["api idle"] += cpu() - spent
        steps = list(client.steps(run_id, after=max(0, client.run(run_id).step - 1000)))
        sums["free steps"] += sum(began <= step.at < ended for step in steps)
        sums["free"] += ended - began

        last_id = int([event.id for event in client.events(run_id, follow=False)][-1])
        options.after_step = steps[-1].step
        phase = asyncio.run(load(client.url, run_id, last_id, options, cpu))
        sums["here"] += phase.own_seconds
        sums["api"] += phase.api_seconds
        steps = list(client.steps(run_id, after=options.after_step))
        sums["loaded steps"] += sum(phase.began <= step.at < phase.ended for step in steps)
        sums["loaded"] += phase.ended - phase.began
        known = [int(event.id) for event in client.events(run_id, after=str(last_id), follow=False)]
        lost, repeated = lost_and_repeated(phase, known, last_id)
        sums["lost"], sums["repeated"] = sums["lost"] + lost, sums["repeated"] + repeated
        sums["events"] += sum(map(len, phase.streams))
        phases.append(phase)
    return phases, sums


def report(phases: list[Phase], sums: dict[str, float], options: argparse.Namespace) -> None:
    latencies = [value for phase in phases for value in phase.latencies]
    cuts = statistics.quantiles(latencies, n=100)
    free, loaded = sums["free steps"] / sums["free"], sums["loaded steps"] / sums["loaded"]
    idle = sums["api idle"] / sums["free"]
    errors = sum(phase.num_errors for phase in phases)
    print("## The API under load\n")
    print(
        f"The demo's run, {options.pairs} times {options.seconds:.0f} s without and with {options.streams} event-stream"
        f" clients and {options.rate:.0f} requests per second (runs, steps, services, queues) on one machine. "
        "Latency is measured from the moment at which a request was due. The load's CPU time also takes from the "
        "run's.\n"
    )
    rows = [
        ("events sent / lost / repeated", f"{sums['events']:.0f} / {sums['lost']:.0f} / {sums['repeated']:.0f}"),
        ("requests / failed", f"{len(latencies)} / {errors}"),
        (
            "latency, median / p99 / largest",
            f"{cuts[49] * 1e3:.1f} / {cuts[98] * 1e3:.1f} / {max(latencies) * 1e3:.0f} ms",
        ),
        ("the run's steps a second, without / with load", f"{free:.2f} / {loaded:.2f}"),
        ("speed with load relative to without", f"{loaded / free:.3f}"),
        ("CPU of the API, without / with load", f"{idle:.2f} / {sums['api'] / sums['loaded']:.2f} cores"),
        ("CPU of the load's clients", f"{sums['here'] / sums['loaded']:.2f} cores"),
    ]
    print("| | |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
