"""A container's health check. Healthy: ready for work (/readyz). Docker restarts no unhealthy container, so a service
that has stopped answering at all (/healthz) is killed here, and its container's restart policy starts it again.

A service that does not listen yet, or is ending, refuses the connection; that is no hang.
"""

from __future__ import annotations

import os
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path

TIMEOUT_SECONDS = 5
FAILURES = 3
"""Checks in a row without any answer until the service is killed. Compose looks every 10 s."""
PID_FILE = Path("/tmp/service.pid")
COUNT_FILE = Path("/tmp/unanswered")


def ask(path: str) -> int:
    """HTTP status; 0 where nothing listens. Raises `TimeoutError`."""
    try:
        url = f"http://127.0.0.1:{os.environ['TURNOUT_PORT']}{path}"
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise error.reason from None
        return 0
    except ConnectionError:
        return 0


def note_hang() -> None:
    """Count one more check without an answer; kill the service at the last."""
    count = int(COUNT_FILE.read_text()) + 1 if COUNT_FILE.exists() else 1
    COUNT_FILE.write_text(str(count))
    if count >= FAILURES and PID_FILE.exists():
        COUNT_FILE.unlink()
        os.kill(int(PID_FILE.read_text()), signal.SIGKILL)


def main() -> int:
    try:
        alive = ask("/healthz")
    except TimeoutError:
        note_hang()
        print(f"no answer within {TIMEOUT_SECONDS} s")
        return 1
    COUNT_FILE.unlink(missing_ok=True)
    try:
        ready = ask("/readyz") if alive else 0
    except TimeoutError:
        ready = 0
    print("ready" if ready == 200 else "alive, not ready" if alive else "not listening")
    return 0 if ready == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
