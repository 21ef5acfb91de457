"""Hosts and ports in the forms used by people, sockets and URLs: IPv6 addresses have brackets in a URL."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path

DEFAULT_HOST = "127.0.0.1"
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that mean "every interface of this machine", each with an address that can be called."""


def host_of(text: str) -> str:
    """The canonical form, without brackets, of a host that may be written as `[::1]`, `0:0:0:0:0:0:0:1` or empty. Names
    are unchanged."""
    text = text.strip()
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ip_address(inner))
    except ValueError:
        return text or DEFAULT_HOST


def machine_id() -> str:
    """The same for all processes of a machine, in containers too, until it restarts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def authority(host: str, port: int) -> str:
    """`host:port` as in URLs and messages."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(host: str, port: int) -> str:
    """The URL under which this machine reaches a server that listens on `host`."""
    host = _WILDCARDS.get(host, host).replace("%", "%25")  # of a zone, as in fe80::1%eth0
    return f"http://{authority(host, port)}"


def listen_on(host: str, port: int) -> socket.socket:
    """A bound TCP socket that a server may listen on; port 0 picks a free one. Raises `OSError`."""
    # asyncio disables Nagle's algorithm only for sockets that name the protocol. Otherwise every response on a
    # keep-alive connection takes 40 ms longer.
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, place = min(found, key=lambda item: item[0] != socket.AF_INET)
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(place)
    except OSError:
        bound.close()
        raise
    return bound


def free_port(host: str = DEFAULT_HOST) -> int:
    """A free TCP port of this machine that the system assigns to no other process in the next minute; 0 if `host` is
    not this machine.

    A connection to it in TIME_WAIT prevents the system from assigning it to a process that asks for any port. A server
    that names the port can still use it, since all servers set SO_REUSEADDR.
    """
    try:
        with listen_on(host, 0) as listener:
            listener.listen()
            place = listener.getsockname()
            with socket.create_connection(place[:2], timeout=1):
                listener.accept()[0].close()
            return int(place[1])
    except OSError:
        return 0


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there."""
    try:
        listen_on(host, port).close()
    except OSError:
        return False
    return True
