"""Bounds a program's threads without a user namespace: the kernel asks the zygote about each thread to be started.

RLIMIT_NPROC counts everything that the user runs, so it cannot bound a single program, and periodic checks would come
too late, after hundreds of threads. The program's process sends the descriptor for the questions before it drops its
last rights (program.py). The answer is to continue, or EAGAIN, as at a limit.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import Final

from services.verifier.sandbox import seccomp

MOST: Final = 32
LISTENER: Final = b"threads"
_QUESTION: Final = struct.Struct("<Q72x")
_ANSWER: Final = struct.Struct("<QqiI")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND
_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE


def hand_over(status: int) -> None:
    """In the child, send the listener. Does nothing if the kernel refuses, as in a container that has its own."""
    try:
        listener = seccomp.install_listener()
    except OSError:
        return
    with socket.socket(fileno=os.dup(status)) as channel:
        socket.send_fds(channel, [LISTENER], [listener])
    os.close(listener)


def hear(told: socket.socket) -> tuple[bytes, int]:
    """In the zygote, receive the child's next message, with the listener's descriptor or -1."""
    data, descriptors, _, _ = socket.recv_fds(told, 256, 1)
    return data, descriptors[0] if descriptors else -1


def answer(listener: int, num_threads: int) -> None:
    """Answer whether a program that has `num_threads` threads may start another."""
    asked = bytearray(_QUESTION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, asked)
        (number,) = _QUESTION.unpack(asked)
        fits = 0 < num_threads < MOST  # 0 if they cannot be counted
        reply = (number, 0, 0, _CONTINUE) if fits else (number, 0, -errno.EAGAIN, 0)
        fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(*reply)))
    except OSError:  # it was killed or got a signal while it asked
        pass
