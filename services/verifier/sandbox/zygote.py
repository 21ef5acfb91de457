"""The zygote: a small Python process that forks one supervised child after another.

`python -m services.verifier.sandbox.zygote DESCRIPTOR INDEX isolated|bare LANDLOCK_ABI [PACKAGE_PATH ...]`

It is started with an empty environment and holds nothing secret, since every program inherits its memory. It waits for
a request on the control socket (wire.py), forks, measures, kills what is over a limit, and answers with what the kernel
says. The child's word is taken for one thing only: that our own set-up reached its last step (program.py).
With `--probe` it says as JSON what this machine's kernel lets it do.
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

from services.verifier.sandbox import kernel, program, room, wire

PRELOADED = (bisect, collections, copy, ctypes, dataclasses, datetime, decimal, fractions, functools, heapq, itertools)
PRELOADED_TOO = (math, operator, random, re, statistics, string, typing)
"""What answers import most; a fork gets them for nothing."""
_CHECK_SECONDS = 0.002
"""Least time between two looks at a running program's CPU clock."""
_LONGEST_PAUSE_SECONDS = 10.0


def main(arguments: list[str]) -> None:
    if arguments == ["--probe"]:
        from services.verifier.sandbox.layers import measure

        print(json.dumps(measure()))
        return
    control = socket.socket(fileno=int(arguments[0]))
    index, isolated, abi = int(arguments[1]), arguments[2] == "isolated", int(arguments[3])
    site.setquit()
    kernel.one_heap()
    base = _address_space()
    home = room.enter(index, arguments[4:], isolated=isolated, landlock_abi=abi)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    stage = program.prepare(home, base)
    gc.collect()
    gc.disable()
    gc.freeze()
    control.send(b"ready")
    while (received := wire.receive_request(control)) is not None:
        request, descriptors = received
        reply = _supervise(stage, request, descriptors, control)
        control.send(wire.pack_reply(reply))


def _address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _supervise(
    stage: program.Stage, request: wire.Request, descriptors: list[int], control: socket.socket
) -> wire.Reply:
    """Fork, wait, kill if need be, clean up. Returns when no process of the run is left."""
    told, tell = os.pipe()
    stage.room.begin_run()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        program.run(stage, request, descriptors, tell)
    stage.room.end_fork()
    for descriptor in (tell, *descriptors):
        os.close(descriptor)
    ended = _watch(child, request, started, control)
    _, status, usage = os.wait4(child, 0)
    wall = time.monotonic() - started
    said = os.read(told, 256)
    os.close(told)
    cpu = usage.ru_utime + usage.ru_stime
    if not said.startswith(program.STARTED):
        return wire.Reply(wire.Ended.NOT_STARTED, status, cpu, wall, 0, said.decode(errors="replace"))
    if ended is wire.Ended.BY_ITSELF and cpu > request.cpu_seconds:
        ended = wire.Ended.CPU_LIMIT
    return wire.Reply(ended, status, cpu, wall, usage.ru_maxrss * 1024)


def _watch(child: int, request: wire.Request, started: float, control: socket.socket) -> wire.Ended:
    """Wait until the child ends or must end; in the latter case it is killed, with its whole pid namespace."""
    handle = os.pidfd_open(child)
    clock = (~child << 3) | 2  # the kernel's name for that process's CPU clock (clock_getcpuclockid)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.register(control, select.POLLHUP | select.POLLRDHUP)
    ended = wire.Ended.BY_ITSELF
    try:
        while True:
            wall_left = request.wall_seconds - (time.monotonic() - started)
            try:
                cpu_left = request.cpu_seconds - time.clock_gettime(clock)
            except OSError:  # it ended between two looks; poll will say so at once
                cpu_left = wall_left
            if wall_left <= 0 or cpu_left <= 0:
                ended = wire.Ended.CPU_LIMIT if cpu_left <= 0 else wire.Ended.WALL_LIMIT
                break
            pause = min(max(min(wall_left, cpu_left), _CHECK_SECONDS), _LONGEST_PAUSE_SECONDS)
            events = poll.poll(pause * 1000 + 1)
            if any(descriptor == handle for descriptor, _ in events):
                return ended
            if events:  # the supervisor is gone
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                os._exit(0)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)
    return ended


if __name__ == "__main__":
    main(sys.argv[1:])
