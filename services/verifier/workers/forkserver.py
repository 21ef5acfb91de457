"""The fork server: the process that workers are forked from.

`python -m services.verifier.workers.forkserver <control descriptor> <memory bytes>`

Rewards and their heavy libraries are loaded here once, so that a worker killed in mid-task is replaced in
milliseconds. It starts with an almost empty environment (no keys, no addresses of services) and one socket, over which
the pool orders and it answers (`Order`, `Answer`). It ends when that socket closes, and its workers with it.

What this does NOT protect from: workers can read files that the service's user can read. Text is only parsed in them;
code that a model wrote runs in the sandbox instead.
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
    """Pool to fork server. `fork` carries the new worker's socket with it."""

    what: Literal["load", "fork", "kill"]
    kind: str = ""
    pid: int = 0


class Answer(msgspec.Struct, array_like=True):
    """Fork server to pool: one to each `load` and `fork`, in order; `exited` whenever a worker ends."""

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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the pool decides when to end
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
    """Load one reward, ready to be used after a fork. Returns what went wrong, or an empty text."""
    if kind in rewards:
        return ""
    try:
        reward = registry.load(kind)
        assert reward.function is not None, "rewards that are opened are not judged in workers"
        if reward.warm is not None:
            reward.warm()
    except BaseException as error:  # noqa: BLE001 - own rewards may do anything at import, even exit
        return f"{type(error).__name__}: {error}"
    rewards[kind] = reward.function
    return ""


def _work(pool: socket.socket, rewards: dict[str, RewardFunction], memory_bytes: int) -> None:
    """A worker's life: one task after another until the socket closes."""
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
    """Judge one reply. The kernel ends the process (SIGPROF) where that takes more CPU time than it may."""
    signal.setitimer(signal.ITIMER_PROF, task.cpu_seconds)
    try:
        return Finding(registry.checked(reward(task.question, task.text, task.truncated)))
    except QuestionError as error:
        return Finding(fault=error.message, remedy=error.remedy)
    except MemoryError:
        return Finding(out_of_memory=True)
    except Exception as error:  # noqa: BLE001 - the border: a reward that raises is a fault, reported with its place
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return Finding(
            fault=f"{error!r:.500} in {frame.name}, line {frame.lineno} of {os.path.basename(frame.filename)}."
        )
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _confine(memory_bytes: int) -> None:
    """Take from this process what judging a text does not need."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # libraries print what they are given
        os.dup2(nothing, descriptor)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory runs out, a worker goes first
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
    """One frame: four bytes of length, then the payload."""
    to.sendall(HEADER.pack(len(payload)) + payload)


def receive(source: socket.socket) -> bytes:
    """One frame. Raises `EOFError` where the other side is gone."""
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
