"""Writes the queue server's users (services/contracts/queue_users.py): `queue_users.py FOLDER_OF_SECRETS FILE`.

Each user's password is taken from the file `queue_<user>` there, which holds its URL.
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from services.contracts.queue_users import USERS, acl_file


def password(file: Path) -> str:
    """The password in a file's URL. Raises `SystemExit` where there is none."""
    try:
        found = urlsplit(file.read_text().strip()).password
    except OSError as error:
        raise SystemExit(f"{file} cannot be read: {error.strerror}. Run deploy/secrets.sh first.") from error
    if not found:
        raise SystemExit(f"{file} has no URL with a password. Delete it and run deploy/secrets.sh.")
    return unquote(found)


def main() -> None:
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    new = target.with_suffix(".new")
    new.write_text(acl_file({user: password(folder / f"queue_{user}") for user in USERS}))
    new.chmod(0o644)  # digests of long random texts
    new.replace(target)


if __name__ == "__main__":
    main()
