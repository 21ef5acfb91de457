"""Landlock: permanently restricts the files that a process can reach, without privileges (from kernel 5.13).

Rights unknown to the running kernel are left out, and then restricted only by the mounts and by seccomp. `Layers` in
layers.py says which version is required. See landlock(7) for the numbers.
"""

from __future__ import annotations

import ctypes
import os
import struct

from services.verifier.sandbox import kernel

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_DIR, MAKE_REG = 1 << 7, 1 << 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

READ = READ_FILE | READ_DIR
LIST = READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
DEVICE = READ_FILE | WRITE_FILE
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

_ALL_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_ALL_NET_RIGHTS = 3  # bind and connect TCP
_ALL_SCOPES = 3  # abstract Unix sockets and signals beyond this domain


def abi() -> int:
    """The kernel's Landlock version; 0 if Landlock is missing or disabled."""
    try:
        return kernel.call("landlock_create_ruleset", kernel.SYS_LANDLOCK_CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def create(version: int) -> int:
    """A rule set that forbids everything that `version` can forbid. The caller must close the descriptor."""
    files = _ALL_FILE_RIGHTS[min(version, 5)]
    attributes = struct.pack("<QQQ", files, _ALL_NET_RIGHTS if version >= 4 else 0, _ALL_SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    buffer = ctypes.create_string_buffer(attributes, 24)
    return kernel.call("landlock_create_ruleset", kernel.SYS_LANDLOCK_CREATE_RULESET, buffer, size, 0)


def allow(ruleset: int, version: int, path: int, rights: int, *, is_folder: bool = True) -> None:
    """Allow `rights` on the file or beneath the folder that the descriptor `path` (O_PATH) names."""
    rights &= _ALL_FILE_RIGHTS[min(version, 5)]
    if not is_folder:
        rights &= _FILE_RIGHTS
    rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, path), 12)
    kernel.call("landlock_add_rule", kernel.SYS_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0)


def restrict(ruleset: int) -> None:
    """Apply the rules to this thread and everything that it will fork. Requires no_new_privs."""
    kernel.call("landlock_restrict_self", kernel.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)


def open_path(path: str) -> int:
    """A descriptor that names `path` without opening it."""
    return os.open(path, os.O_PATH | os.O_CLOEXEC)
