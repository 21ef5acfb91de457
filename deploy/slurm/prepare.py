"""Makes a job's secrets and the queue server's configuration in its home, once: `prepare.py HOME`."""

from __future__ import annotations

import sys
from pathlib import Path

from services.runtime.secret_files import SERVICE_TOKEN, read_or_make
from turnout.cli.local.queue_server import write_configuration

API_KEY = "api-key"


def main() -> None:
    home = Path(sys.argv[1]).resolve()
    for name in (SERVICE_TOKEN, API_KEY):
        read_or_make(home, name)
    command = write_configuration(home, 6379)
    (home / "queue" / "command").write_text("\n".join(command) + "\n")


if __name__ == "__main__":
    main()
