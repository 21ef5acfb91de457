"""The fork server: the process that workers are forked from.

`python -m services.verifier.workers.forkserver <control descriptor> <memory bytes>`

Rewards and their heavy libraries are loaded once here, so that a worker killed in the middle of a task is replaced
within milliseconds. The process starts with an almost empty environment (no keys, no service addresses) and one socket,
over which the pool sends orders and gets answers (`Order`, `Answer`). It exits when that socket closes, and its workers
with it.

This is NOT a sandbox: workers can read every file that the service's user can read. They only parse text; code that a
model wrote runs in the sandbox instead.
"""

from __future__ import annotations

import ctypes
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import traceback
from typing import Final, Literal

import msgspec

from services.contracts.errors import QuestionError
from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.verifier.rewards import registry
from services.verifier.rewards.registry import RewardFunction

HEADER: Final = struct.Struct("<I")
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


class Order(msgspec.Struct, array_like=True):
    """Pool to fork server. `fork` passes the worker's socket along."""

    what: Literal["load", "fork", "kill"]
    kind: str = ""
    pid: int = 0


class Answer(msgspec.Struct, array_like=True):
    """Fork server to pool: one for each `load` and `fork`, in order, and `exited` whenever a worker exits."""

    what: Literal["loaded", "forked", "exited"]
    pid: int = 0
    signal: int = 0
    """Signal that ended the worker; 0 for none."""
    error: str = ""


class Task(msgspec.Struct, array_like=True):
    """Pool to worker."""

    question: Question
    text: str
    truncated: bool
    cpu_seconds: float


class Finding(msgspec.Struct, array_like=True):
    """Worker to pool."""

    judgement: Judgement | None = None
    out_of_memory: bool = False
    fault: str = ""
    remedy: str = ""


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    memory_bytes = int(sys.argv[2])
    rewards: dict[str, RewardFunction] = {}
    awake, alarm = socket.socketpair()
    alarm.setblocking(False)
    signal.set_wakeup_fd(alarm.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, but the pool decides when to exit
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(awake, selectors.EVENT_READ)
    workers: set[int] = set()
    while True:
        for key, _ in selector.select():
            if key.fileobj is awake:
                awake.recv(4096)
                _reap(control, workers)
                continue
            data, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 1)
            if not data:
                os._exit(0)
            order = msgspec.msgpack.decode(data, type=Order)
            if order.what == "load":
                _answer(control, Answer("loaded", error=_load(order.kind, rewards)))
            elif order.what == "kill" and order.pid in workers:
                os.kill(order.pid, signal.SIGKILL)
            elif order.what == "fork":
                pid = os.fork()
                if pid == 0:
                    for unneeded in (control, awake, alarm):
                        unneeded.close()
                    selector.close()
                    _work(socket.socket(fileno=descriptors[0]), rewards, memory_bytes)
                os.close(descriptors[0])
                workers.add(pid)
                _answer(control, Answer("forked", pid=pid))


def _answer(control: socket.socket, answer: Answer) -> None:
    control.sendall(msgspec.msgpack.encode(answer))


def _reap(control: socket.socket, workers: set[int]) -> None:
    while workers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        workers.discard(pid)
        _answer(control, Answer("exited", pid=pid, signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0))


def _load(kind: str, rewards: dict[str, RewardFunction]) -> str:
    """Load one reward, so that forked workers can use it. Returns the error, or an empty text."""
    if kind in rewards:
        return ""
    try:
        reward = registry.load(kind)
        assert reward.function is not None, "rewards that need opening do not run in workers"
        if reward.warm is not None:
            reward.warm()
    except BaseException as error:  # noqa: BLE001 - a package may do anything at import, even exit
        return f"{type(error).__name__}: {error}"
    rewards[kind] = reward.function
    return ""


def _work(pool: socket.socket, rewards: dict[str, RewardFunction], memory_bytes: int) -> None:
    """The worker's main loop: one task after another until the socket closes."""
    try:
        _confine(memory_bytes)
        while True:
            task = msgspec.msgpack.decode(receive(pool), type=Task)
            send(pool, msgspec.msgpack.encode(_judge(rewards[task.question.kind], task)))
    except (EOFError, ConnectionError):
        pass
    finally:
        os._exit(0)


def _judge(reward: RewardFunction, task: Task) -> Finding:
    """Judge one reply. The kernel kills the process (SIGPROF) if it exceeds its CPU time."""
    signal.setitimer(signal.ITIMER_PROF, task.cpu_seconds)
    try:
        return Finding(registry.checked(reward(task.question, task.text, task.truncated)))
    except QuestionError as error:
        return Finding(fault=error.message, remedy=error.remedy)
    except MemoryError:
        return Finding(out_of_memory=True)
    except Exception as error:  # noqa: BLE001 - an exception of a reward is a fault, reported with its location
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return Finding(
            fault=f"{error!r:.500} in {frame.name}, line {frame.lineno} of {os.path.basename(frame.filename)}."
        )
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _confine(memory_bytes: int) -> None:
    """Drop what this process does not need to judge a text."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # libraries may print their input
        os.dup2(nothing, descriptor)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if memory runs out, the kernel kills workers first
    except OSError:
        pass
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def send(to: socket.socket, payload: bytes) -> None:
    """Send one frame: four bytes of length, then the payload."""
    to.sendall(HEADER.pack(len(payload)) + payload)


def receive(source: socket.socket) -> bytes:
    """Receive one frame. Raises `EOFError` if the other side is gone."""
    (length,) = HEADER.unpack(_exactly(source, HEADER.size))
    return _exactly(source, length)


def _exactly(source: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        chunk = source.recv(min(1 << 20, length - len(data)))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


if __name__ == "__main__":
    main()
