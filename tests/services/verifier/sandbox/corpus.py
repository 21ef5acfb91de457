"""The attack corpus: small hostile programs, and the result that the verifier must report for each.

A program knows, as a gift to the attacker, where the canary file lies, on which port a listener waits and which process
supervises it (`Marks`). It prints ESCAPED when an attempt worked. containment.py looks at the evidence outside.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from services.verifier.sandbox.kernel import machine
from services.verifier.sandbox.system_calls import ABSENT, ALLOWED, INSPECTED, LETHAL

EXITED = frozenset({"exited"})
KILLED = frozenset({"killed"})
DONE = frozenset({"exited", "killed"})
STOPPED = frozenset({"exited", "killed", "timeout_cpu", "timeout_wall", "memory", "output_limit"})


@dataclass(frozen=True)
class Attack:
    name: str
    category: str
    source: str
    expect: frozenset[str] = EXITED
    """Statuses that are containment."""
    violation: str = ""
    """What must be among the violations."""
    most_printed: int = -1
    """Upper bound for the last number that the program prints, such as the bytes that it managed to write."""


@dataclass(frozen=True)
class Marks:
    """Facts that the attacker is given."""

    canary: str
    port: int
    abstract: str
    pid: int
    source: str
    drop: str
    """Name of a file that no attack may leave anywhere."""

    def fill(self, source: str) -> str:
        for name in ("canary", "abstract", "source", "drop"):
            source = source.replace(f"@{name.upper()}@", getattr(self, name))
        return source.replace("@PORT@", str(self.port)).replace("@PID@", str(self.pid))


def refused(body: str) -> str:
    """The body must raise; if it reaches its end, it has escaped."""
    inner = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return f"try:\n{inner}\n    print('ESCAPED')\nexcept BaseException as error:\n    print('refused', repr(error))\n"


def call(name: str, *arguments: str) -> str:
    """A raw system call from C, bypassing Python. Prints ESCAPED if the kernel allows it."""
    tables = {**ALLOWED, **ABSENT, **INSPECTED, **LETHAL, **_OTHERS}
    number = tables[name][0 if machine == "x86_64" else 1]
    listed = "".join(f", {argument}" for argument in arguments)
    return (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"result = libc.syscall(ctypes.c_long({number}){listed})\n"
        "print('ESCAPED' if result >= 0 else 'refused', result, ctypes.get_errno())\n"
    )


def attacks(category: str, table: dict[str, str], expect: frozenset[str] = EXITED, violation: str = "") -> list[Attack]:
    return [Attack(name, category, textwrap.dedent(source), expect, violation) for name, source in table.items()]


_OTHERS: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, 220),
    "vfork": (58, 220),
    "socket": (41, 198),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "mknodat": (259, 33),
    "kill": (62, 129),
    "pidfd_open": (434, 434),
    "prctl": (157, 167),
    "setsid": (112, 157),
    "timer_create": (222, 107),
    "mlock": (149, 228),
    "splice": (275, 76),
    "rt_sigqueueinfo": (129, 138),
    "tkill": (200, 130),
    "pidfd_send_signal": (424, 424),
    "uretprobe": (335, None),
    "inotify_init1": (294, 26),
    "landlock_restrict_self": (446, 446),
    "future_call": (4000, 4000),
}


def corpus() -> list[Attack]:
    """All attacks. Their names are unique."""
    from tests.services.verifier.sandbox import attacks_exhaustion, attacks_forgery, attacks_kernel, attacks_reach

    found = [*attacks_reach.ATTACKS, *attacks_exhaustion.ATTACKS, *attacks_forgery.ATTACKS, *attacks_kernel.ATTACKS]
    assert len({attack.name for attack in found}) == len(found)
    return found
