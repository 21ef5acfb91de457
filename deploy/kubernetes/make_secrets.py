"""Prints every Secret that the manifests refer to, with new random values; nothing is written to disk.

python deploy/kubernetes/make_secrets.py | kubectl create -f -                       # refuses to overwrite
python deploy/kubernetes/make_secrets.py turnout-queue | kubectl replace -f -        # other passwords for the queues
"""

from __future__ import annotations

import argparse
import secrets

import yaml

from services.contracts.queue_users import USERS, acl_file


def make(namespace: str) -> dict[str, dict[str, object]]:
    """Manifests by name."""
    passwords = {user: secrets.token_hex(32) for user in USERS}
    values = {
        "turnout-service": {"token": secrets.token_hex(32)},
        "turnout-api": {"operate": secrets.token_hex(32), "read": secrets.token_hex(32)},
        "turnout-postgres": {"password": secrets.token_hex(32)},
        # The queue server sees the file alone, which has digests; each service its own password.
        "turnout-queue": {**passwords, "users.acl": acl_file(passwords)},
    }
    return {
        name: {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "stringData": data,
        }
        for name, data in values.items()
    }


def main() -> None:
    made = make("turnout")
    parser = argparse.ArgumentParser(description="Print Secrets with new random values, for kubectl.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of {', '.join(made)}")
    parser.add_argument("--namespace", default="turnout")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(made):
        parser.error(f"there is no Secret {', '.join(sorted(unknown))}; choose from {', '.join(made)}")
    made = make(arguments.namespace)
    print(yaml.safe_dump_all([made[name] for name in arguments.names or made], sort_keys=False), end="")


if __name__ == "__main__":
    main()
