"""torch process groups for weight transports, the same for learner and rollout servers.

Callers pass in torch, so that this module does not import it.
"""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from typing import Any

_environment = threading.Lock()
"""Groups for several servers may be created at the same time; each needs the variable below during construction."""


def device_name(torch: Any, device: Any) -> str:
    """UUID of a GPU, the same in every process that sees it; `cpu` for the CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"


def make_group(torch: Any, store: Any, rank: int, size: int, device: Any, limit: timedelta) -> Any:
    """A process group apart from the service's others, NCCL on a GPU, gloo on the CPU; `limit` for each single wait.

    NCCL's is built in blocking mode: `wait` then raises after its limit and aborts the communicator. In the usual mode
    a watchdog would end the whole process when a peer dies.
    """
    c10d = torch.distributed.distributed_c10d
    if device.type != "cuda":
        return c10d.ProcessGroupGloo(store, rank, size, timeout=limit)
    torch.cuda.set_device(device)  # per thread
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = limit
    with _environment:
        before = os.environ.get("TORCH_NCCL_BLOCKING_WAIT")
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
        try:
            return c10d.ProcessGroupNCCL(store, rank, size, options)
        finally:
            if before is None:
                del os.environ["TORCH_NCCL_BLOCKING_WAIT"]
            else:
                os.environ["TORCH_NCCL_BLOCKING_WAIT"] = before
