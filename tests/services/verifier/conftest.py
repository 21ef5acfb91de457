"""Fixtures for parts of the verifier that are slow to start, and for endpoints."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import pytest_asyncio

from services.verifier.sandbox.sandbox import Sandbox
from services.verifier.workers.pool import WorkerPool
from tests.conftest import ROOT

Answer = tuple[int, bytes]


class Endpoint:
    """An HTTP endpoint whose responses the test sets."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.answer: Callable[[int], Answer] = lambda number: (200, b'{"reward": 1}')
        self.headers: dict[str, str] = {}
        self.encoding = ""
        self.drips = False
        """Sends one space after another."""
        self.enough = threading.Event()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.requests.append((body, dict(self.headers)))
            status, data = found.answer(len(found.requests))
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if found.encoding:
                self.send_header("Content-Encoding", found.encoding)
            self.send_header("Location", "http://127.0.0.1:1/")
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if not found.drips:
                self.wfile.write(data)
            while found.drips and not found.enough.wait(0.01):
                self.wfile.write(b" ")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Endpoint(f"http://127.0.0.1:{server.server_port}/judge")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield found
    found.enough.set()
    server.shutdown()
    server.server_close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[WorkerPool]:
    """Two workers with a short limit of CPU time (one answer takes about 0.01 s)."""
    made = WorkerPool(num_workers=2, cpu_seconds=0.1, wall_seconds=120.0, memory_bytes=2 << 30)
    yield made
    await made.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    made = Sandbox(2)
    await made.start()
    yield made
    await made.close()


@pytest.fixture(scope="session")
def published_rows() -> list[dict[str, Any]]:
    """Rows of the published benchmarks, if they are in the folder next to the repository; often none."""
    files = sorted((ROOT.parent / "shared" / "datasets").rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
