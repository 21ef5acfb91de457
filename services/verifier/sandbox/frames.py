"""Messages between verifier and zygote over a SOCK_SEQPACKET pair: only fixed-size numbers and descriptors.

Source, input and output of a program never pass through the zygote: they are memory files of the verifier, passed on as
descriptors. The memory that programs inherit from the zygote therefore never contained another program's data.
"""

from __future__ import annotations

import array
import socket
import struct
from dataclasses import astuple, dataclass
from enum import IntEnum

NUM_DESCRIPTORS = 4
"""Source (read), standard input (read), standard output (write), standard error (write), in this order."""
_REQUEST = struct.Struct("<dddQQ")
_REPLY = struct.Struct("<BidddQ160s")


class Ended(IntEnum):
    """How a program ended, as seen by the zygote."""

    BY_ITSELF = 0
    CPU_LIMIT = 1
    WALL_LIMIT = 2
    NOT_STARTED = 3
    """Our set-up failed, and no line of the program ran."""
    STARVED = 4
    """The machine was too busy to give the program its time."""
    TOO_MANY_THREADS = 5


@dataclass(frozen=True, slots=True)
class Request:
    """Limits of one run."""

    cpu_seconds: float
    wall_seconds: float
    patience_seconds: float
    memory_bytes: int
    output_bytes: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The kernel's measurements of one run."""

    ended: Ended
    wait_status: int
    """As returned by wait4(2)."""
    cpu_seconds: float
    wall_seconds: float
    queued_seconds: float
    """Longest time that one of its threads waited for a core. Measured only if it may matter."""
    peak_resident_bytes: int
    fault: str = ""
    """Why the program did not start."""


def send_request(control: socket.socket, request: Request, descriptors: list[int]) -> None:
    packed = _REQUEST.pack(*astuple(request))
    rights = array.array("i", descriptors).tobytes()
    control.sendmsg([packed], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def receive_request(control: socket.socket) -> tuple[Request, list[int]] | None:
    """The next request, or None if the verifier is gone."""
    size = array.array("i").itemsize
    data, ancillary, _, _ = control.recvmsg(_REQUEST.size, socket.CMSG_SPACE(NUM_DESCRIPTORS * size))
    if not data:
        return None
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        descriptors.frombytes(payload)
    assert len(descriptors) == NUM_DESCRIPTORS
    return Request(*_REQUEST.unpack(data)), list(descriptors)


def pack_reply(reply: Reply) -> bytes:
    return _REPLY.pack(
        reply.ended,
        reply.wait_status,
        reply.cpu_seconds,
        reply.wall_seconds,
        reply.queued_seconds,
        reply.peak_resident_bytes,
        reply.fault.encode(errors="replace")[:160],
    )


def unpack_reply(data: bytes) -> Reply:
    ended, status, cpu, wall, queued, peak, fault = _REPLY.unpack(data)
    return Reply(Ended(ended), status, cpu, wall, queued, peak, fault.rstrip(b"\0").decode(errors="replace"))
