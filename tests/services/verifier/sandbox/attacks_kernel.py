"""Kernel surface: calls that only an attacker makes, by number, from C and from machine code."""

from __future__ import annotations

from services.verifier.sandbox.kernel import machine
from services.verifier.sandbox.system_calls import LETHAL
from tests.services.verifier.sandbox.corpus import EXITED, KILLED, Attack, attacks, call, refused

_SEEN_ELSEWHERE = {
    *("ptrace", "process_vm_readv", "pidfd_getfd", "chroot", "mount", "umount2", "unshare", "setns"),
    *("open_by_handle_at", "pivot_root", "execveat"),
}
_COLUMN = 0 if machine == "x86_64" else 1
_LETHAL = {
    f"call_{name}": call(name, "0", "0", "0", "0", "0", "0")
    for name, numbers in LETHAL.items()
    if numbers[_COLUMN] is not None and name not in _SEEN_ELSEWHERE
}
_REFUSED = {
    "call_splice": call("splice", "0", "0", "1", "0", "1", "0"),
    "call_landlock": call("landlock_restrict_self", "0", "0"),
    "call_of_the_future": call("future_call"),
    "gain_privileges": refused("import os; os.setuid(0)"),
    "gain_groups": refused("import os; os.setgroups([0])"),
    "raise_priority": refused("import os; os.nice(-5)"),
    "choose_core": refused("import os; os.sched_setaffinity(0, {0})"),
    "real_time": refused("import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"),
    "terminal_injection": refused("import fcntl; fcntl.ioctl(1, 0x5412, b'x')"),
    "device_control": refused("import fcntl; fcntl.ioctl(1, 0xC0045878, 0)"),
    "own_signals_by_descriptor": refused("import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, 1)"),
    "leases": refused("import fcntl; fcntl.fcntl(0, 1024, 0)"),
    "load_library_from_scratch": refused("""
        import ctypes, shutil, _ctypes
        shutil.copyfile(_ctypes.__file__, 'x.so')
        ctypes.CDLL('/tmp/x.so')
    """),
}
# int 0x80 reaches the 32-bit call table (20 is getpid there), whose numbers differ from ours.
_MACHINE_CODE = """
import ctypes, mmap
memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(bytes.fromhex("b814000000cd80c3"))
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print("ESCAPED", ctypes.CFUNCTYPE(ctypes.c_long)(address)())
"""
_X32 = """
import ctypes
print("ESCAPED", ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 | 39)))
"""
_NATIVE = {"call_32_bit": _MACHINE_CODE, "call_x32": _X32} if machine == "x86_64" else {}

ATTACKS: list[Attack] = [
    *attacks("kernel", _LETHAL, KILLED, "system_call"),
    *attacks("kernel", _NATIVE, KILLED, "system_call"),
    *attacks("kernel", _REFUSED, EXITED),
]
