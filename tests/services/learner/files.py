"""A learner's files, served from a thread for tests without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import FastAPI

from services.learner.connections.files import add_file_routes
from services.runtime.http.server import http_server
from services.runtime.process import bind
from services.runtime.settings import Settings


@contextmanager
def files_served(home: Path, token: str) -> Iterator[str]:
    """The URL of a learner with this home."""
    app = FastAPI()
    add_file_routes(app, Settings(home=home, service_token=token))
    listener, server = bind("127.0.0.1", 0), http_server(app)
    thread = threading.Thread(target=lambda: asyncio.run(server._serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
