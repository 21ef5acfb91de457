"""Bounds on a connection: bytes that arrive too slowly, too many bytes, responses that the client does not read."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator

import httpx
import pytest
import uvloop
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from services.runtime.http import server as http_server
from services.runtime.http.server import MAX_HEAD_BYTES, MAX_HEADERS
from services.runtime.process import bind

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
STREAM = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"
PIECE = b"x" * (64 << 10)
NUM_PIECES = 300
"""Together more than the system's own buffers."""
LARGE = f"GET /stream?num_pieces={NUM_PIECES} HTTP/1.1\r\nConnection: close\r\n\r\n".encode()


class Served:
    """The server on a real port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections: set[object] = set()
        self.released = asyncio.Event()
        """Lets a stream continue after its first piece."""

    async def connect(self, text: bytes = b"") -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(text)
        return reader, writer

    async def ask(self, text: bytes) -> bytes:
        """Send and read until the server closes."""
        reader, writer = await self.connect(text)
        try:
            with contextlib.suppress(ConnectionError):
                return await reader.read()
            return b""
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    app = FastAPI()
    listener = bind("127.0.0.1", 0)
    served = Served(listener.getsockname()[1])

    @app.get("/")
    async def who(request: Request) -> str:
        return request.client.host if request.client else ""

    @app.post("/")
    async def take(request: Request) -> int:
        return len(await request.body())

    @app.get("/stream")
    async def stream(num_pieces: int = 0) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            await served.released.wait()
            for _ in range(num_pieces):
                yield PIECE

        return StreamingResponse(pieces())

    running = http_server.http_server(app)
    task = asyncio.create_task(running._serve(sockets=[listener]))
    while not running.started:
        await asyncio.sleep(0)
    served.connections = running.server_state.connections  # type: ignore[assignment]
    yield served
    served.released.set()
    running.should_exit = True
    await task


def large_heads() -> dict[str, bytes]:
    start = b"GET / HTTP/1.1\r\n"
    return {
        "many headers": start + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        "a long value": start + b"a: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
        "a long name": start + b"a" * MAX_HEAD_BYTES + b": b\r\n\r\n",
        "a long path": b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
        "long together": start + (b"a: " + b"b" * 400 + b"\r\n") * (MAX_HEADERS - 1) + b"\r\n",
        "a name that never ends": start + b"a" * (MAX_HEAD_BYTES << 4),
        "a path that never ends": b"GET /" + b"a" * (MAX_HEAD_BYTES << 4),
    }


@pytest.mark.parametrize("kind", large_heads())
@pytest.mark.parametrize("piece", [1 << 12, 1 << 20])
async def test_a_head_that_is_too_large_is_refused(server: Served, kind: str, piece: int) -> None:
    text = large_heads()[kind]
    reader, writer = await server.connect()
    with contextlib.suppress(ConnectionError):
        for start in range(0, len(text), piece):
            writer.write(text[start : start + piece])
            await writer.drain()
    with contextlib.suppress(ConnectionError):  # closed while we still sent
        answer = await reader.read()
        assert not answer or (answer.startswith(b"HTTP/1.1 431 ") and b"application/problem+json" in answer)
    writer.close()
    assert (await server.ask(LAST)).startswith(b"HTTP/1.1 200 ")


async def test_headers_as_many_and_as_long_as_allowed_pass(server: Served) -> None:
    text = b"GET / HTTP/1.1\r\nConnection: close\r\n" + (b"a: " + b"b" * 300 + b"\r\n") * (MAX_HEADERS - 1) + b"\r\n"
    assert (await server.ask(text)).startswith(b"HTTP/1.1 200 ")


async def test_what_is_no_request_is_a_problem(server: Served) -> None:
    answer = await server.ask(b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"408"),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab", b"408"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", b"408"),
        (ASK + b"GET / HTTP/1.1\r\nHost", b"200"),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\na", b"200"),
        (b"GET /stream HTTP/1.1\r\nContent-Length: 5\r\n\r\na", b"200"),
    ],
)
async def test_a_request_must_come_whole_and_in_time(
    server: Served, text: bytes, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.2)
    answer = await server.ask(text)  # comes back at all, since the server closes
    assert answer[9:12] == status


async def test_bytes_one_by_one_do_not_move_the_deadline(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.3)
    for start in (b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", ASK + b"GET /"):
        reader, writer = await server.connect(start)
        ended = asyncio.create_task(reader.read())
        while not ended.done():
            writer.write(b"x")
            await asyncio.sleep(0.02)
        writer.close()


async def test_a_slow_answer_is_not_a_slow_request(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is the client's: one that waits for us keeps its connection, and may send its next request."""
    has_passed, too_slow = asyncio.Event(), http_server.BoundedProtocol._too_slow

    def passed(connection: http_server.BoundedProtocol) -> None:
        too_slow(connection)
        has_passed.set()

    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.1)
    monkeypatch.setattr(http_server.BoundedProtocol, "_too_slow", passed)
    reader, writer = await server.connect(STREAM + ASK + b"GET")
    await reader.readuntil(b"first")
    await has_passed.wait()
    server.released.set()
    await reader.readuntil(b"\r\n0\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()


def test_a_client_closes_its_idle_connection_before_the_server_does() -> None:
    """Otherwise a request that is sent while the server closes fails, such as the next question of a conversation."""
    expiry = httpx.Limits().keepalive_expiry
    assert expiry is not None
    assert http_server.http_server(FastAPI()).config.timeout_keep_alive >= expiry * 2


async def test_who_does_not_read_is_cut_off(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "WRITE_SECONDS", 0.2)
    server.released.set()
    reader, writer = await server.connect(LARGE)
    while not server.connections:
        await asyncio.sleep(0.01)
    while server.connections:
        await asyncio.sleep(0.01)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(NUM_PIECES * len(PIECE))
    writer.close()


async def test_who_reads_slowly_but_steadily_gets_all(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "WRITE_SECONDS", 0.15)
    server.released.set()
    reader, writer = await server.connect(LARGE)
    total = 0
    while data := await reader.read(2 << 20):
        total += len(data)
        await asyncio.sleep(0.003)
    assert total > NUM_PIECES * len(PIECE)
    writer.close()


async def test_where_connections_run_out_the_longest_silent_one_makes_room(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "max_connections", lambda: 5)
    stream, streaming = await server.connect(STREAM)
    await stream.readuntil(b"first")
    silent = [await server.connect() for _ in range(20)]
    assert b"200 OK" in await server.ask(LAST)
    for reader, _ in silent[:16]:
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    assert not silent[-1][0].at_eof()
    server.released.set()
    await stream.readuntil(b"\r\n0\r\n\r\n")
    for writer in (streaming, *(writer for _, writer in silent)):
        writer.close()


async def test_where_all_connections_are_at_work_a_new_one_is_told(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "max_connections", lambda: 2)
    streams = [await server.connect(STREAM) for _ in range(2)]
    for reader, _ in streams:
        await reader.readuntil(b"first")
    assert (await server.ask(b"")).startswith(b"HTTP/1.1 503 ")
    for _, writer in streams:
        writer.close()


def test_the_same_holds_on_the_loop_that_the_api_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(http_server, "WRITE_SECONDS", 0.2)

    async def scenario() -> None:
        async with serving() as server:
            assert (await server.ask(large_heads()["many headers"])).startswith(b"HTTP/1.1 431 ")
            assert (await server.ask(b"GET / HTTP/1.1\r\n")).startswith(b"HTTP/1.1 408 ")
            assert (await server.ask(LAST)).startswith(b"HTTP/1.1 200 ")
            server.released.set()
            _, writer = await server.connect(LARGE)
            while not server.connections:
                await asyncio.sleep(0.01)
            while server.connections:
                await asyncio.sleep(0.01)
            writer.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


def test_connections_stay_below_what_the_process_may_open() -> None:
    program = """
import resource
from services.runtime.http.server import max_connections, raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 700))
print(max_connections(), raise_descriptor_limit(), max_connections())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["128", "700", "572"]


async def test_only_proxies_that_are_named_say_where_a_caller_is(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = b"GET / HTTP/1.1\r\nX-Forwarded-For: 9.9.9.9\r\nConnection: close\r\n\r\n"
    assert (await server.ask(forged)).endswith(b'"127.0.0.1"')
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1")
    config = http_server.http_server(FastAPI()).config
    assert config.forwarded_allow_ips == "127.0.0.1"
