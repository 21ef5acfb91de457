"""Sets the environment that vLLM needs at import, and releases what a forked engine process must not inherit.

Variables that are already set win. On the CPU build the engine-core process is forked from the service, which has vLLM
imported already, and runs the model itself. That saves two imports of vLLM (about 14 CPU-seconds each) and a message
queue between processes in every decoding step; docs/decisions has the measurements (21).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
from importlib import metadata
from multiprocessing.util import register_after_fork

from services.contracts.errors import ConfigurationError
from services.runtime.environment import fill_environment
from services.runtime.settings import Settings
from services.runtime.torch.libraries import check_vllm_cpu

BACKEND = "turnout"
"""Name of our weight transfer engine in vLLM."""
REFUSED = "weights refused"
"""Prefix of the message of an update error that left the model unchanged. Errors leave vLLM's worker only as text."""
REFUSED_ELSEWHERE = f"{REFUSED}: another worker of this engine rejected them."
_COMMON = {
    "GLOO_SOCKET_IFNAME": "lo",  # an engine's workers share a machine; gloo would use the host name's address
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CONFIGURE_LOGGING": "0",  # our handlers print vLLM's records
    "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",  # workers that wait for a dead one never exit in order
    "VLLM_PLUGINS": "turnout",
    "TOKENIZERS_PARALLELISM": "false",
}
_CPU = {
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",  # vLLM compiles small sampler functions even in eager mode: half a minute of C++
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process for engine core and worker of the asynchronous engine
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM's pinning would put all services on the same core
}


def on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build.

    Raises:
        ConfigurationError: vLLM is not installed.
    """
    for name in ("vllm-cpu", "vllm"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return name == "vllm-cpu" or "cpu" in version
    raise ConfigurationError(
        "vLLM is not installed, so this machine cannot serve rollouts.",
        remedy="Install this package with the extra `cpu` or `gpu`.",
    )


def check_machine(_: Settings) -> None:
    """Raise `ConfigurationError` if the machine lacks what the installed vLLM needs."""
    if on_cpu():
        check_vllm_cpu()


def prepare() -> None:
    """Set the environment. Call it before anything imports torch or vLLM."""
    fill_environment(_COMMON | (_CPU if on_cpu() else {}))
    logging.getLogger("vllm").setLevel(logging.WARNING)
    os.register_at_fork(after_in_child=release_inherited)
    register_after_fork(die_with_parent, lambda _: die_with_parent())  # later, once the child knows its parent


def import_vllm() -> None:
    """Import what the engine needs. Takes several seconds, so run it in a thread."""
    import vllm.entrypoints.rl.online.api_router
    import vllm.v1.engine.async_llm
    import vllm.v1.engine.core
    import vllm.v1.executor.uniproc_executor

    if on_cpu():
        import vllm.v1.worker.cpu_worker  # noqa: F401


def release_inherited() -> None:
    """In a forked child, detach the parent's signal pipe and close its listening sockets.

    Otherwise a signal to the child would wake the parent's event loop as if the parent had received it, and the port of
    a killed service would stay in use for as long as the child lives.
    """
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)
    for entry in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            inherited = socket.socket(fileno=int(entry))
        except OSError:
            continue
        listens = inherited.family in (socket.AF_INET, socket.AF_INET6) and inherited.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        )
        (inherited.close if listens else inherited.detach)()


_watching = 0
"""The process that watches its parent."""


def die_with_parent() -> None:
    """In an engine process, exit as soon as the service that started it is gone. Does nothing in the service itself.

    vLLM's engine core outlives a parent that gets SIGKILL, and would keep memory and a GPU indefinitely.
    """
    global _watching
    parent = multiprocessing.parent_process()
    if parent is None or _watching == os.getpid():  # a fork inherits the number, but not the thread
        return
    _watching = os.getpid()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
