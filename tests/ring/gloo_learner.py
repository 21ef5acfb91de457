"""The learner service with gloo in NCCL's place: `python -m tests.ring.gloo_learner`.

A learner without CUDA gives its weights to the store alone, whatever `weights.transport` says. Here the real service
starts the real training program through this module, which changes what `make_sender` gives, and how much is packed
into a chunk. While the file `hold` is in TURNOUT_HOME, a version that is being sent stops after its first chunk, and
`held` appears next to it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.learner import processes, service
from services.learner.connections.progress_pipe import RUN_VARIABLE

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 1 << 16


def train() -> int:
    """The training program."""
    from services.learner.program import main as train  # isort: skip  # `train` prepares the environment
    from services.learner.publish import chunks, nccl  # isort: skip  # `train` prepares the environment
    from services.learner.program import leader
    from services.runtime.traces import flush_traces

    hold, held = (Path(os.environ["TURNOUT_HOME"]) / name for name in ("hold", "held"))

    def make_sender(transport: str, device: Any, settings: Any, warn: Any) -> nccl.NcclSender:
        assert transport == "nccl"
        return nccl.NcclSender(settings.host, device)

    def fill(buffer: Tensor, chunk: Any, weights: Mapping[str, Tensor]) -> None:
        chunks.fill(buffer, chunk, weights)
        begins = chunk.tensors[0].name == next(iter(weights))
        while hold.exists() and not begins and threading.current_thread().name == "transfer-send":
            held.touch()
            time.sleep(0.01)

    chunks.CHUNK_BYTES = CHUNK_BYTES
    nccl.fill = fill  # type: ignore[attr-defined]
    leader.make_sender = make_sender  # type: ignore[attr-defined]
    code = train.main()
    flush_traces()
    return code


if __name__ == "__main__":
    if RUN_VARIABLE in os.environ:
        code = train()
        sys.stdout.flush()
        os._exit(code)
    from services.runtime.process import run_service

    processes.PROGRAM = "tests.ring.gloo_learner"
    run_service("learner", service.loops)
