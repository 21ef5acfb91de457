"""The learner's processes: their torch.distributed environment, threads and device.

Call `prepare_environment` before importing torch or deepspeed, which read the environment when they are imported.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from services.contracts.errors import ConfigurationError
from services.learner.connections.progress_pipe import ATTEMPT_VARIABLE, LISTENER_VARIABLE, MEETING_VARIABLE
from services.runtime.environment import fill_environment

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Longer than any pass. Ranks that wait for groups get a command every few seconds (`program.commands`)."""


def prepare_environment() -> None:
    """Set what torch and deepspeed would otherwise guess. Values that are set already are kept."""
    fill_environment({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"})
    fill_environment(
        {
            "LOCAL_RANK": os.environ["RANK"],
            "GLOO_SOCKET_IFNAME": "lo",  # ranks share a machine; gloo would use the host name's address
            # The rollout engine needs the other cores. `threads` gives a large model more.
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
    )


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the learner's processes."""

    rank: int
    num_ranks: int
    device: Any
    """torch.device"""


def join() -> Ranks:
    """Initialize torch.distributed (gloo on CPU, nccl on GPU) through DeepSpeed."""
    import torch

    rank, num_ranks, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    # DeepSpeed compiles a shared-memory all-reduce for CPU inference at start. Training never calls it; without it, no
    # compiler is needed.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise ConfigurationError(
                f"training.num_ranks asks for {local + 1} GPUs or more on {socket.gethostname()}, which has "
                f"{torch.cuda.device_count()}.",
                remedy="Lower it, or give the learner more GPUs or machines.",
                field="training.num_ranks",
            )
        torch.cuda.set_device(local)
    if ATTEMPT_VARIABLE in os.environ:
        _meet_over_network("nccl" if on_gpu else "gloo", rank, num_ranks)
    # Prefer a file, since torch's own TCP store listens on all interfaces and accepts commands from anyone.
    meeting = os.environ.get(MEETING_VARIABLE)
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo",
        timeout=COLLECTIVE_TIMEOUT,
        init_method=f"file://{meeting}" if meeting else None,
        auto_mpi_discovery=False,  # without MASTER_ADDR, DeepSpeed would look for MPI
        rank=rank,
        world_size=num_ranks,
    )
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    return Ranks(rank, num_ranks, device)


def _meet_over_network(backend: str, rank: int, num_ranks: int) -> None:
    """Make torch's process group with ranks on other machines, by the store that torchrun uses. DeepSpeed takes it as
    it finds it."""
    import torch.distributed as distributed

    listener = os.environ.get(LISTENER_VARIABLE) if rank == 0 else None
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        num_ranks,
        is_master=rank == 0,
        timeout=COLLECTIVE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=None if listener is None else int(listener),
    )
    attempt = distributed.PrefixStore(os.environ[ATTEMPT_VARIABLE], store)  # type: ignore[attr-defined]
    distributed.init_process_group(backend, store=attempt, rank=rank, world_size=num_ranks, timeout=COLLECTIVE_TIMEOUT)


def leave() -> None:
    """Leave the process group, if one was joined."""
    import torch.distributed as distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
