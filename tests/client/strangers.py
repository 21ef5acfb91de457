"""What an unprivileged user may try on another user's deployment. Needs only the standard library; runs as that user:

    python strangers.py HOME PORT...

Prints one JSON object: each port's answers to a Redis and an HTTP client, and which files of the home are readable.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from pathlib import Path

COMMANDS = (
    ("PING",),
    ("AUTH", "default", ""),
    ("AUTH", "operator", "operator"),
    ("SET", "turnout:assignment:learner-0", "../../../../tmp/made"),
    ("XADD", "turnout:{run}:prompts", "*", "m", "x"),
    ("XRANGE", "turnout:events", "-", "+"),
    ("CONFIG", "SET", "dir", "/tmp"),
    ("KEYS", "*"),
    ("SHUTDOWN", "NOSAVE"),
)
CALLS = (
    ("GET", "/healthz", b""),
    ("GET", "/metrics", b""),
    ("GET", "/v1/weights", b""),
    ("PUT", "/v1/weights", b'{"version": 1, "path": "/etc", "checksum": ""}'),
    ("POST", "/v1/engine/pause", b""),
    ("POST", "/v1/engine/update_weights", b"{}"),
    ("GET", "/docs", b""),
    ("GET", "/openapi.json", b""),
)


def redis_says(port: int) -> dict[str, str]:
    """The beginning of the answer to each command, each on a separate connection."""
    said = {}
    for command in COMMANDS:
        parts = "".join(f"${len(part)}\r\n{part}\r\n" for part in command)
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.settimeout(5)
                connection.sendall(f"*{len(command)}\r\n{parts}".encode())
                said[" ".join(command)] = connection.recv(60).decode("latin-1").strip()
        except OSError as error:
            said[" ".join(command)] = type(error).__name__
    return said


def http_says(port: int) -> dict[str, int]:
    """The status of each call; 0 for no answer."""
    said = {}
    for method, path, body in CALLS:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request(method, path, body, {"Authorization": "Bearer guessed"})
            said[f"{method} {path}"] = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            said[f"{method} {path}"] = 0
        finally:
            connection.close()
    return said


def readable(home: Path) -> list[str]:
    """Files and folders of the home whose content this user can see or change."""
    found = [home, *home.rglob("*")] if os.access(home, os.R_OK) else [home]
    return [str(path.relative_to(home)) for path in found if os.access(path, os.R_OK) or os.access(path, os.W_OK)]


if __name__ == "__main__":
    ports = [int(port) for port in sys.argv[2:]]
    print(
        json.dumps(
            {
                "user": os.geteuid(),
                "redis": {port: redis_says(port) for port in ports},
                "http": {port: http_says(port) for port in ports},
                "readable": readable(Path(sys.argv[1])),
            }
        )
    )
