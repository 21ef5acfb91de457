"""Starts a service in its container: `entry.py rollout`.

Gives a rollout server its GPUs, and makes a JSON object of every line that the service, its libraries or their
processes print. Needs nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PID_FILE = Path("/tmp/service.pid")
"""Of the service's main process, for health.py."""
MAX_LINE_BYTES = 64 << 10
DRAIN_SECONDS = 2.0
"""For the last lines of a service that has ended; processes of its own may hold the pipe open for longer."""
_COLOURS = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class NoGpuLeftError(Exception):
    """No GPUs of the list are left for this rollout server."""


def claim_gpus(gpus: list[str], size: int, folder: Path) -> tuple[list[str], list[int]]:
    """The first group of `size` GPUs that no other rollout server of this machine has, and the open files that hold the
    claim: it ends with the process. GPUs that follow each other in the list form a group. Raises `NoGpuLeftError`."""
    if size < 1 or len(gpus) % size:
        raise NoGpuLeftError(
            f"ROLLOUT_GPUS is {','.join(gpus)}, which ROLLOUT_GPUS_PER_SERVER={size} does not divide into groups. Name"
            " a multiple of it."
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for start in range(0, len(gpus), size):
        group, claims = gpus[start : start + size], []
        for gpu in group:
            claims.append(os.open(folder / f"{gpu}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            try:
                fcntl.flock(claims[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                break
        else:
            return group, claims
        for claim in claims:
            os.close(claim)
    raise NoGpuLeftError(
        f"ROLLOUT_GPUS is {','.join(gpus)}, and other rollout servers have all of these. Start fewer of them"
        " (ROLLOUT_SERVERS), or name more GPUs."
    )


def lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines as they come, also those that only a carriage return ends, as of progress bars."""
    rest = b""
    while chunk := os.read(stream.fileno(), MAX_LINE_BYTES):
        *whole, rest = re.split(rb"[\r\n]", rest + chunk)
        yield from whole
        if len(rest) > MAX_LINE_BYTES:
            yield rest
            rest = b""
    yield rest


def as_json(line: bytes, fields: dict[str, str]) -> bytes | None:
    """The line as a JSON object; None for an empty one."""
    line = _COLOURS.sub(b"", line).strip()
    if not line:
        return None
    if line.startswith(b"{"):
        try:
            json.loads(line)
            return line
        except ValueError:
            pass
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
    text = line[:MAX_LINE_BYTES].decode(errors="replace")
    # A service's last words, why it ends, before it has a log or after.
    level = "error" if text.startswith(f"turnout {fields.get('service')}: ") else "info"
    return json.dumps({"event": text, **fields, "level": level, "logger": "output", "timestamp": stamp}).encode()


def relay(stream: IO[bytes], fields: dict[str, str]) -> None:
    """Print a service's lines as JSON until it has closed them."""
    for line in lines(stream):
        if (text := as_json(line, fields)) is not None:
            sys.stderr.buffer.write(text + b"\n")
            sys.stderr.buffer.flush()


def gpu_environment(service: str) -> dict[str, str]:
    """What `ROLLOUT_GPUS`, `ROLLOUT_GPUS_PER_SERVER` and `LEARNER_GPUS` mean for CUDA in this container; nothing
    without them. The learner's first GPU comes last for a rollout server, which takes new weights from there with
    `weights.transport: cuda_ipc`."""
    learner = [gpu for gpu in os.environ.get("LEARNER_GPUS", "").split(",") if gpu]
    rollout = [gpu for gpu in os.environ.get("ROLLOUT_GPUS", "").split(",") if gpu]
    if service == "learner" and learner:
        return {"CUDA_VISIBLE_DEVICES": ",".join(learner)}
    if service != "rollout" or not rollout:
        return {}
    size = os.environ.get("ROLLOUT_GPUS_PER_SERVER") or "1"
    if not size.isdecimal():
        raise NoGpuLeftError(f"ROLLOUT_GPUS_PER_SERVER is {size!r}, which is no number of GPUs.")
    group, _ = claim_gpus(rollout, int(size), Path(os.environ["TURNOUT_HOME"]) / "gpus")
    return {"CUDA_VISIBLE_DEVICES": ",".join([*group, *(other for other in learner[:1] if other not in group)])}


def main() -> int:
    """Run the service to its end; its exit code."""
    service = sys.argv[1]
    fields = {"service": service, "instance": os.environ.get("HOSTNAME", service)}
    try:
        environment = {**os.environ, **gpu_environment(service)}
    except NoGpuLeftError as error:
        print(json.dumps({"event": str(error), **fields, "level": "error"}), file=sys.stderr)
        time.sleep(10)  # whoever starts it again need not do so all the time
        return 2
    command = [sys.executable, "-m", f"services.{service}"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    assert process.stdout is not None
    PID_FILE.write_text(str(process.pid))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: process.send_signal(number))
    printer = threading.Thread(target=relay, args=(process.stdout, fields), daemon=True)
    printer.start()
    code = process.wait()
    printer.join(DRAIN_SECONDS)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
