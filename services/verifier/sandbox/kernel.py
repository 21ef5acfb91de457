"""The few kernel calls that Python 3.11 does not wrap. Each raises OSError with the call's name.

They are in one module so that everything that calls the kernel by number can be reviewed in one place. The zygote
imports it before it forks. A program in the sandbox may call it too, but the seccomp filter rejects these calls.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_BIND = 0x1000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

# The same on x86_64 and aarch64 from call 424 on; the older ones go through the C library.
SYS_CLOSE_RANGE = 436
SYS_MOUNT_SETATTR = 442
SYS_LANDLOCK_CREATE_RULESET = 444
SYS_LANDLOCK_ADD_RULE = 445
SYS_LANDLOCK_RESTRICT_SELF = 446
SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}

AT_FDCWD = -100
AT_RECURSIVE = 0x8000
M_ARENA_MAX = -8

machine = os.uname().machine
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def _check(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def call(name: str, number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A raw system call. Integers are passed as 64-bit words, bytes and buffers by address."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *words), name)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    _check(_libc.setns(descriptor, kind), "setns")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [text.encode() if text is not None else None for text in (source, target, kind, data)]
    _check(_libc.mount(encoded[0], encoded[1], encoded[2], flags, encoded[3]), f"mount on {target}")


def unmount(target: str, flags: int) -> None:
    _check(_libc.umount2(target.encode(), flags), f"umount {target}")


def mount_set_attributes(target: str, attributes: int) -> None:
    """Set MOUNT_ATTR_* (same numbers as MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC) on a mount and all below it."""
    structure = ctypes.create_string_buffer(b"".join(word.to_bytes(8, "little") for word in (attributes, 0, 0, 0)), 32)
    call("mount_setattr", SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, structure, 32)


def pivot_root_here() -> None:
    """Make the working folder the root of this mount namespace and release the old root."""
    call("pivot_root", SYS_PIVOT_ROOT[machine], b".", b".")
    unmount(".", MNT_DETACH)
    os.chdir("/")


def prctl(option: int, value: int) -> int:
    return _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), "prctl")


def drop_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets; no_new_privs keeps them empty."""
    header = ctypes.create_string_buffer(b"\x22\x05\x08\x20" + bytes(4), 8)  # _LINUX_CAPABILITY_VERSION_3, this process
    call("capset", SYS_CAPSET[machine], header, ctypes.create_string_buffer(24))


def close_from(first: int) -> None:
    """Close every descriptor from `first` on, including forgotten ones."""
    call("close_range", SYS_CLOSE_RANGE, first, 0xFFFFFFFF, 0)


def one_heap() -> None:
    """Make all threads share one heap, since each further heap would reserve 128 MiB of the limited address space."""
    _libc.mallopt(M_ARENA_MAX, 1)
