"""Runs the corpus and prints as JSON {mode: {attack: problems}}.

A program: `python -m tests.services.verifier.sandbox.as_user`.

For test_ordinary_user.py, which starts it as a user without privileges, with an interpreter that user can read.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading

from services.verifier.sandbox.sandbox import Program, Sandbox, probe
from tests.services.verifier.sandbox.containment import Evidence, living
from tests.services.verifier.sandbox.corpus import corpus

HONEST = """
import threading
threads = [threading.Thread(target=int) for _ in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("done")
"""


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


async def use_threads(namespaces: bool) -> str:
    """The output of an honest program with threads while this user's other processes have many."""
    hold = threading.Event()
    others = [threading.Thread(target=hold.wait) for _ in range(100)]
    sandbox = Sandbox(1, namespaces=namespaces)
    await sandbox.start()
    for other in others:
        other.start()
    found = await sandbox.run(Program(HONEST))
    hold.set()
    await sandbox.close()
    return (found.stdout or found.stderr).decode()


if __name__ == "__main__":
    report: dict[str, object] = {"uid": os.getuid(), "layers": probe().active}
    report["bare"] = asyncio.run(attack_all(False))
    if probe().isolated:
        report["isolated"] = asyncio.run(attack_all(True))
    report["threads"] = [asyncio.run(use_threads(namespaces)) for namespaces in (False, True)]
    print(json.dumps(report))
