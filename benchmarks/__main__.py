"""Runs every benchmark and writes docs/performance.md: `make bench`; `python -m benchmarks rollout sandbox` for some.

Each module next to this one is a program that prints a Markdown section: a heading, a line on what was done, a table
with medians and ratios within that run. Ratios compare things measured in turn in one run; absolute times are this
machine's.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
MARK = "<!-- {name} -->"


def machine() -> str:
    """The hardware in one line."""
    cpu = platform.processor()
    try:
        match = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        cpu = match.group(1) if match else cpu
        total = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
        memory = f"{int(total.group(1)) / 2**20:.0f} GiB" if total else ""
    except OSError:
        memory = ""
    return f"{cpu}, {os.cpu_count()} cores, {memory}, Python {platform.python_version()}, {platform.system()}"


def sections() -> dict[str, str]:
    """The page's present sections by benchmark, so that running one keeps the others."""
    if not PAGE.exists():
        return {}
    parts = re.split(r"<!-- (\w+) -->\n", PAGE.read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def all_names() -> list[str]:
    """Modules and packages next to this one; names with an underscore are parts of others."""
    packages = [path.parent.name for path in HERE.glob("[a-z]*/__main__.py")]
    return sorted(packages + [path.stem for path in HERE.glob("[a-z]*.py")])


def measure(name: str) -> tuple[int, str]:
    """Run one benchmark: its exit code, and its section. It is terminated if this program is, and stops what it
    started."""
    with subprocess.Popen([sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True) as process:
        try:
            text, _ = process.communicate()
        finally:
            if process.poll() is None:
                process.terminate()
    return process.returncode, text.strip()


def main() -> int:
    """Run the benchmarks named (default: all); the exit code counts those that failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    names = sys.argv[1:] or all_names()
    found = sections()
    failed = 0
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name} ...", flush=True)
        started = time.monotonic()
        exit_code, text = measure(name)
        if exit_code:
            failed += 1
            print(f"{name} failed with exit code {exit_code}; its section stays as it was.")
            continue
        stamp = f"`python -m benchmarks {name}`, {time.strftime('%Y-%m-%d')}, {machine()}"
        found[name] = f"{text}\n\n{stamp}\n\n"
        print(f"{text}\n({time.monotonic() - started:.0f} s)\n", flush=True)
        body = "".join(f"{MARK.format(name=key)}\n{found[key]}" for key in sorted(found))
        PAGE.write_text(f"# Performance\n\nWritten by `make bench`. Ratios compare figures of the same run.\n\n{body}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
