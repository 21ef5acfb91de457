"""What torch and its backends are told of the network between the machines of a run."""

from __future__ import annotations

import os

import psutil

from services.learner.connections.progress_pipe import ATTEMPT_VARIABLE


def variables_for(attempt: str, address: str, port: int, own_address: str) -> dict[str, str]:
    """Environment of ranks that meet at `address`, on the machine that reaches it from `own_address`.

    gloo would take the address that the host's name leads to, often loopback. Interfaces that a person has chosen stay.
    """
    found = {ATTEMPT_VARIABLE: attempt, "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    interface = interface_of(own_address)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if interface and name not in os.environ:
            found[name] = interface
    return found


def interface_of(address: str) -> str:
    """Name of the network interface that has an address; empty for none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == address for found in addresses):
            return name
    return ""
