"""Bounds a program's threads where it has no user namespace: the kernel asks the zygote about each new one.

RLIMIT_NPROC counts all that the user runs, so it cannot bound one program there; a look now and then would come after
hundreds of threads. The program's process sends the descriptor of the questions before it gives up its last right
(program.py); the answer is to continue, or EAGAIN, as at a limit.
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
    """In the child: send the listener. Does nothing where the kernel refuses, as in a container with one of its own."""
    try:
        listener = seccomp.install_listener()
    except OSError:
        return
    with socket.socket(fileno=os.dup(status)) as channel:
        socket.send_fds(channel, [LISTENER], [listener])
    os.close(listener)


def hear(told: socket.socket) -> tuple[bytes, int]:
    """In the zygote: the child's next words, with the listener's descriptor or -1."""
    data, descriptors, _, _ = socket.recv_fds(told, 256, 1)
    return data, descriptors[0] if descriptors else -1


def answer(listener: int, num_threads: int) -> None:
    """Let a program that has `num_threads` start one more, or not."""
    asked = bytearray(_QUESTION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, asked)
        (number,) = _QUESTION.unpack(asked)
        fits = 0 < num_threads < MOST  # 0: it cannot be counted
        reply = (number, 0, 0, _CONTINUE) if fits else (number, 0, -errno.EAGAIN, 0)
        fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(*reply)))
    except OSError:  # it was killed, or a signal came, while it asked
        pass
