"""A process that has imported the training program and forks it on demand, so that tests do not wait for imports.

python -m tests.services.learner.warm        reads JSON lines {"env": {...}, "module": "..."}, answers with
                                             {"pid": ...}, and later {"pid": ..., "code": ...} for each that ended
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import sys

from services.learner.model.ranks import prepare_environment

prepare_environment()
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Everything that the program imports sooner or later. None of it starts a thread.
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401
import transformers.models.qwen3.modeling_qwen3  # noqa: E402, F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402, F401

import services.learner.program.main as program  # noqa: E402
from tests.faults import NAMESPACES_OF, enter_namespaces  # noqa: E402
from tests.services.learner import device_program, engine_program, memory_program, update_program  # noqa: E402

PROGRAMS = {
    "device": device_program.run_from,
    "engine": engine_program.run_from,
    "memory": memory_program.run_from,
    "updates": update_program.run_from,
}


def child(request: dict[str, object]) -> None:
    """The forked process: the real program with its own environment."""
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if NAMESPACES_OF in os.environ:
        enter_namespaces(int(os.environ[NAMESPACES_OF]))
    code = 1
    try:
        if request["module"] == "train":
            code = program.main()
        else:
            PROGRAMS[str(request["module"])](request["arguments"])  # type: ignore[arg-type]
            code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    watch = selectors.DefaultSelector()
    watch.register(sys.stdin, selectors.EVENT_READ)
    watch.register(read_end, selectors.EVENT_READ)
    gc.freeze()
    print(json.dumps({"ready": True}), flush=True)
    while True:
        for key, _ in watch.select():
            if key.fileobj is not sys.stdin:
                os.read(read_end, 4096)
                continue
            line = sys.stdin.readline()
            if not line:
                return
            pid = os.fork()
            if pid == 0:
                child(json.loads(line))
            print(json.dumps({"pid": pid}), flush=True)
        reap()


def reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        print(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
