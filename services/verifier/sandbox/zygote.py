"""The zygote: a small Python process that forks one supervised child after another.

`python -m services.verifier.sandbox.zygote DESCRIPTOR INDEX isolated|bare LANDLOCK_ABI [PACKAGE_PATH ...]`

It starts with an empty environment and contains no secrets, since every program inherits its memory. It waits for a
request on the control socket (frames.py), forks, measures, kills a program that exceeds a limit, and replies with the
kernel's measurements. It trusts the child in one respect only: that our set-up reached its last step (program.py). With
`--probe` it prints as JSON which layers this machine's kernel supports.
"""

from __future__ import annotations

import bisect
import collections
import copy
import ctypes
import dataclasses
import datetime
import decimal
import fractions
import functools
import gc
import heapq
import itertools
import json
import math
import operator
import os
import random
import re
import resource
import select
import signal
import site
import socket
import statistics
import string
import sys
import time
import typing

from services.verifier.sandbox import frames, kernel, program, room, threads

PRELOADED = (bisect, collections, copy, ctypes, dataclasses, datetime, decimal, fractions, functools, heapq, itertools)
PRELOADED_TOO = (math, operator, random, re, statistics, string, typing)
"""The modules that programs import most, which a fork gets for free."""
_CHECK_SECONDS = 0.002
"""Shortest time between two checks of a running program's CPU clock."""
_LONGEST_PAUSE_SECONDS = 10.0
_COUNT_SECONDS = 0.02
"""Time between two counts of a program's threads, if the kernel does not bound them per program."""


def main(arguments: list[str]) -> None:
    if arguments == ["--probe"]:
        from services.verifier.sandbox.layers import measure

        print(json.dumps(measure()))
        return
    control = socket.socket(fileno=int(arguments[0]))
    index, isolated, abi = int(arguments[1]), arguments[2] == "isolated", int(arguments[3])
    site.setquit()
    site.sethelper()
    site.setcopyright()
    _go_first()
    kernel.one_heap()
    base = _address_space()
    home = room.enter(index, arguments[4:], isolated=isolated, landlock_abi=abi)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    stage = program.prepare(home, base)
    gc.collect()
    gc.disable()
    gc.freeze()
    control.send(b"ready")
    while (received := frames.receive_request(control)) is not None:
        request, descriptors = received
        reply = _supervise(stage, request, descriptors, control)
        control.send(frames.pack_reply(reply))


def _go_first() -> None:
    """Make the kernel kill programs, which inherit this, before services if memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def _address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _supervise(
    stage: program.Stage, request: frames.Request, descriptors: list[int], control: socket.socket
) -> frames.Reply:
    """Fork, wait, kill if necessary, and clean up. Returns when no process of the run is left."""
    told, tell = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    started = time.monotonic()
    try:
        stage.room.begin_run()
        child = os.fork()
    except OSError as error:  # no process or namespace is available
        stage.room.end_fork()
        for descriptor in (told.detach(), tell.detach(), *descriptors):
            os.close(descriptor)
        return frames.Reply(frames.Ended.NOT_STARTED, 0, 0.0, 0.0, 0.0, 0, f"Could not start a process: {error}.")
    if child == 0:
        program.run(stage, request, descriptors, tell.fileno())
    stage.room.end_fork()
    tell.close()
    for descriptor in descriptors:
        os.close(descriptor)
    said, listener = (b"", -1) if stage.room.isolated else threads.hear(told)
    ended = (watch := Watch(child, request, started, control, stage.room, listener)).until_end()
    _, status, usage = os.wait4(child, 0)
    wall = time.monotonic() - started
    if said in (b"", threads.LISTENER):
        said = told.recv(256)
    told.close()
    cpu = usage.ru_utime + usage.ru_stime
    if not said.startswith(program.STARTED):
        return frames.Reply(frames.Ended.NOT_STARTED, status, cpu, wall, 0, 0, said.decode(errors="replace"))
    if ended is frames.Ended.BY_ITSELF and cpu > request.cpu_seconds:
        ended = frames.Ended.CPU_LIMIT
    if ended is frames.Ended.STARVED and watch.queued_seconds is None and usage.ru_nivcsw <= usage.ru_nvcsw:
        ended = frames.Ended.WALL_LIMIT  # more voluntary than involuntary switches: it chose to wait
    return frames.Reply(ended, status, cpu, wall, watch.queued_seconds or 0.0, usage.ru_maxrss * 1024)


class Watch:
    """Watches a running program and kills it, with its whole pid namespace, if it exceeds a limit."""

    def __init__(
        self,
        child: int,
        request: frames.Request,
        started: float,
        control: socket.socket,
        home: room.Room,
        listener: int,
    ) -> None:
        self._request, self._started, self._control, self._room = request, started, control, home
        self._handle = os.pidfd_open(child)
        self._listener = listener
        """Descriptor on which the kernel asks about threads; -1 if it does not, since it counts in a user namespace."""
        self._clock = (~child << 3) | 2  # the kernel's name for that process's CPU clock (clock_getcpuclockid)
        self.queued_seconds: float | None = 0.0
        """How long the program waited for a core, as last measured; None if the kernel does not say."""

    def until_end(self) -> frames.Ended:
        """Wait until the program ends, or kill it once it exceeds a limit."""
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        poll.register(self._control, select.POLLHUP | select.POLLRDHUP)
        if self._listener >= 0:
            poll.register(self._listener, select.POLLIN)
        try:
            while True:
                ended, pause = self._look()
                if ended is not None:
                    signal.pidfd_send_signal(self._handle, signal.SIGKILL)
                    return ended
                happened = dict(poll.poll(pause * 1000 + 1))
                if self._handle in happened:
                    return frames.Ended.BY_ITSELF
                if self._control.fileno() in happened:  # the verifier is gone
                    signal.pidfd_send_signal(self._handle, signal.SIGKILL)
                    os._exit(0)
                if happened.get(self._listener, 0) & select.POLLIN:
                    threads.answer(self._listener, self._room.proc.num_threads(self._handle))
                elif self._listener in happened:  # no thread is left that could ask
                    poll.unregister(self._listener)
        finally:
            for descriptor in {self._handle, self._listener} - {-1}:
                os.close(descriptor)

    def _look(self) -> tuple[frames.Ended | None, float]:
        """The limit that the program exceeds, if any, and for how long it cannot exceed another one."""
        wall = time.monotonic() - self._started
        wall_left = self._wall_left(wall)
        try:
            cpu_left = self._request.cpu_seconds - time.clock_gettime(self._clock)
        except OSError:  # it ended between two checks, which poll will report immediately
            return None, _CHECK_SECONDS
        if cpu_left <= 0:
            return frames.Ended.CPU_LIMIT, 0.0
        if wall_left <= 0:
            starved = self.queued_seconds is None or wall - self.queued_seconds < self._request.wall_seconds
            return frames.Ended.STARVED if starved else frames.Ended.WALL_LIMIT, 0.0
        pause = min(max(min(wall_left, cpu_left), _CHECK_SECONDS), _LONGEST_PAUSE_SECONDS)
        if not self._room.isolated and self._listener < 0:  # the kernel refused, so check periodically
            if self._room.proc.num_threads(self._handle) > threads.MOST:
                return frames.Ended.TOO_MANY_THREADS, 0.0
            pause = min(pause, _COUNT_SECONDS)
        return None, pause

    def _wall_left(self, wall: float) -> float:
        """Remaining wall time: the limit plus the time that it waited for a core, up to `patience_seconds`."""
        patience_left = self._request.patience_seconds - wall
        if self.queued_seconds is not None and wall >= self._request.wall_seconds + self.queued_seconds:
            self.queued_seconds = self._room.proc.queued_seconds(self._handle)
        if self.queued_seconds is None:
            return patience_left
        return min(self._request.wall_seconds + self.queued_seconds - wall, patience_left)


if __name__ == "__main__":
    main(sys.argv[1:])
