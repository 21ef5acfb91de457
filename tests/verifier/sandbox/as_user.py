"""Runs the corpus and prints as JSON {mode: {attack: problems}}. A program: `python -m tests.verifier.sandbox.as_user`.

For test_ordinary_user.py, which starts it as a user without privileges, with an interpreter that user can read.
"""

from __future__ import annotations

import asyncio
import json
import os

from services.verifier.sandbox.api import Sandbox, probe
from tests.verifier.sandbox.containment import Evidence, living
from tests.verifier.sandbox.corpus import corpus


async def attack_all(namespaces: bool) -> dict[str, list[str]]:
    evidence = Evidence()
    sandbox = Sandbox(4, namespaces=namespaces)
    await sandbox.start()
    before = living(os.getpid())
    await sandbox.run(evidence.victim())

    async def one(attack):  # type: ignore[no-untyped-def]
        return attack.name, evidence.problems(attack, await sandbox.run(evidence.program(attack)))

    found = dict(await asyncio.gather(*map(one, corpus())))
    after = living(os.getpid())
    found["survivors"] = [] if after == before else [f"{before} became {after}"]
    await sandbox.close()
    found["left over"] = [str(left) for left in living(os.getpid()).values()]
    evidence.close()
    return found


if __name__ == "__main__":
    report: dict[str, object] = {"uid": os.getuid(), "layers": probe().active}
    report["bare"] = asyncio.run(attack_all(False))
    if probe().isolated:
        report["isolated"] = asyncio.run(attack_all(True))
    print(json.dumps(report))
