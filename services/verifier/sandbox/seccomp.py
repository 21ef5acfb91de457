"""The system-call filter: an allowlist, assembled here into the kernel's BPF and installed as the last step.

Rejected calls fail with EPERM, so that an honest program gets a Python exception; lethal calls kill the program with
SIGSYS. Arguments are inspected if only some uses of a call are needed:

* clone: threads only, never a process or a namespace.
* ioctl: whether a descriptor is a terminal, close on exec, non-blocking mode.
* fcntl: flags of descriptors, but not pipe sizes, owners or seals.
* tgkill: only to the program itself, and not SIGKILL (a program that kills itself must not look like a host fault).
* prlimit64: reads the program's own limits and sets its stack limit (deep recursion). The kernel sends SIGKILL if the
  CPU limit is exceeded, so a program that could lower it could look as if the host had killed it.
"""

from __future__ import annotations

import ctypes
import errno
import resource
import struct

from services.verifier.sandbox import kernel
from services.verifier.sandbox.system_calls import ABSENT, ALLOWED, INSPECTED, LETHAL

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_ALWAYS, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT = 0x05, 0x15, 0x35, 0x45
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}
_X32_BIT = 0x40000000

_THREAD_FLAGS = 0x00010000 | 0x00000100 | 0x00000800  # CLONE_THREAD, CLONE_VM, CLONE_SIGHAND
_NAMESPACE_FLAGS = 0x7E020000 | 0x00000080
_IOCTLS = (0x5401, 0x5413, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONBIO, FIONCLEX, FIOCLEX
_FCNTLS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
_SIGKILL = 9
SET_MODE_FILTER = 1
_NEW_LISTENER = 8
_ASK = 0x7FC00000  # SECCOMP_RET_USER_NOTIF

Instruction = tuple[int, int, int, int]


def supported() -> bool:
    """Whether this machine's system-call numbers are known."""
    return kernel.machine in _COLUMN


def program(own_pid: int) -> bytes:
    """The filter for a process that sees itself as `own_pid`: a search tree over ranges of call numbers."""
    column = _COLUMN[kernel.machine]
    actions: dict[int, list[Instruction]] = {}
    for table, action in ((ALLOWED, _ALLOW), (ABSENT, _ERRNO | errno.ENOSYS), (LETHAL, _KILL)):
        for numbers in table.values():
            if (number := numbers[column]) is not None:
                actions[number] = [_return(action)]
    for name, numbers in INSPECTED.items():
        number = numbers[column]
        assert number is not None, "inspected calls exist on every machine"
        actions[number] = _inspect(name, own_pid)
    code: list[Instruction] = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, _ARCHITECTURE[kernel.machine]),
        _return(_KILL),
        (_LOAD, 0, 0, 0),
        (_JUMP_AT_LEAST, 0, 1, _X32_BIT),
        _return(_KILL),
        *_search(_ranges(actions)),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _ranges(actions: dict[int, list[Instruction]]) -> list[tuple[int, list[Instruction]]]:
    """(first number, action from there on), ascending, adjacent actions differing. Other numbers are rejected."""
    refuse = [_return(_ERRNO | errno.EPERM)]
    ranges = [(0, actions.get(0, refuse))]
    for number in range(1, max(actions) + 2):
        action = actions.get(number, refuse)
        if action != ranges[-1][1]:
            ranges.append((number, action))
    return ranges


def _search(ranges: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """A binary search. Short paths speed up the kernel's preparation of the filter, which happens once per run."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    low, high = _search(ranges[:middle]), _search(ranges[middle:])
    if len(low) < 256:
        return [(_JUMP_AT_LEAST, len(low), 0, ranges[middle][0]), *low, *high]
    return [(_JUMP_AT_LEAST, 0, 1, ranges[middle][0]), (_JUMP_ALWAYS, 0, 0, len(low)), *low, *high]


def install(code: bytes) -> None:
    """Apply the filter to this thread and those that it will start. Requires no_new_privs."""
    _install(code, 0)


def _install(code: bytes, flags: int) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(instructions))
    buffer = ctypes.create_string_buffer(header, 16)
    return kernel.call("seccomp", kernel.SYS_SECCOMP[kernel.machine], SET_MODE_FILTER, flags, buffer)


def install_listener() -> int:
    """Let the holder of the returned descriptor decide about each further thread of this process.

    Requires no_new_privs. The kernel asks only about `clone`, whose flags the other filter has inspected. They are in
    registers, so they cannot change between the question and the answer. Raises OSError if the kernel refuses.
    """
    clone = INSPECTED["clone"][_COLUMN[kernel.machine]]
    assert clone is not None, "inspected calls exist on every machine"
    code = [(_LOAD, 0, 0, 0), (_JUMP_EQUAL, 0, 1, clone), _return(_ASK), _return(_ALLOW)]
    return _install(b"".join(struct.pack("<HBBI", *instruction) for instruction in code), _NEW_LISTENER)


def _return(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _argument(index: int) -> Instruction:
    """Load the low 32 bits of an argument, which is all that the kernel uses of the inspected ones."""
    return (_LOAD, 0, 0, 16 + 8 * index)


def _argument_high(index: int) -> Instruction:
    """Load the high 32 bits of an argument."""
    return (_LOAD, 0, 0, 16 + 8 * index + 4)


def _one_of(index: int, values: tuple[int, ...]) -> list[Instruction]:
    code = [_argument(index)]
    for value in values:
        code += [(_JUMP_EQUAL, 0, 1, value), _return(_ALLOW)]
    return [*code, _return(_ERRNO | errno.EPERM)]


def _inspect(name: str, own_pid: int) -> list[Instruction]:
    refuse = _return(_ERRNO | errno.EPERM)
    if name == "clone":
        return [
            _argument(0),
            (_JUMP_ANY_BIT, 3, 0, _NAMESPACE_FLAGS),
            (_AND, 0, 0, _THREAD_FLAGS),
            (_JUMP_EQUAL, 0, 1, _THREAD_FLAGS),
            _return(_ALLOW),
            refuse,
        ]
    if name == "ioctl":
        return _one_of(1, _IOCTLS)
    if name == "fcntl":
        return _one_of(1, _FCNTLS)
    if name == "prlimit64":
        return [
            _argument(0),
            (_JUMP_EQUAL, 0, 7, 0),
            _argument(1),
            (_JUMP_EQUAL, 4, 0, resource.RLIMIT_STACK),
            _argument(2),  # a pointer to the new limit, of which both halves are inspected
            (_JUMP_EQUAL, 0, 3, 0),
            _argument_high(2),
            (_JUMP_EQUAL, 0, 1, 0),
            _return(_ALLOW),
            refuse,
        ]
    assert name == "tgkill"
    return [
        _argument(2),
        (_JUMP_EQUAL, 3, 0, _SIGKILL),
        _argument(0),
        (_JUMP_EQUAL, 0, 1, own_pid),
        _return(_ALLOW),
        refuse,
    ]
