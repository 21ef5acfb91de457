"""Every attack is contained, with and without namespaces, and leaves no process behind."""

from __future__ import annotations

import asyncio
import os

import pytest

from services.runtime.process import LoopThread
from services.verifier.sandbox.sandbox import Result
from tests.services.verifier.sandbox.conftest import start
from tests.services.verifier.sandbox.containment import Evidence, living
from tests.services.verifier.sandbox.corpus import Attack, corpus

CORPUS = corpus()


class Siege:
    """The results of the whole corpus against one sandbox, four attacks at a time."""

    def __init__(self, loop: LoopThread, namespaces: bool) -> None:
        self.evidence = Evidence()
        self.others = living(os.getpid())
        self.sandbox = start(loop, num_zygotes=4, namespaces=namespaces)
        self.before = self._ours()
        loop.call(self.sandbox.run(self.evidence.victim()))
        self.seen = dict(loop.call(self._attack_all()))
        self.after = self._ours()
        self.last_words = loop.call(self.sandbox.run(self.evidence.victim()))
        loop.call(self.sandbox.close())
        self.left = self._ours()
        self.evidence.close()

    def _ours(self) -> dict[int, str]:
        """Descendants of this process, except those that other tests had started before."""
        return {pid: command for pid, command in living(os.getpid()).items() if pid not in self.others}

    async def _attack_all(self) -> list[tuple[str, tuple[Result, list[str]]]]:
        return await asyncio.gather(*map(self._attack, CORPUS))

    async def _attack(self, attack: Attack) -> tuple[str, tuple[Result, list[str]]]:
        result = await self.sandbox.run(self.evidence.program(attack))
        return attack.name, (result, self.evidence.problems(attack, result))


@pytest.fixture(scope="module", params=[True, False], ids=["namespaces", "bare"])
def siege(request: pytest.FixtureRequest, loop: LoopThread) -> Siege:
    return Siege(loop, request.param)


@pytest.mark.parametrize("attack", CORPUS, ids=lambda attack: f"{attack.category}-{attack.name}")
def test_contained(siege: Siege, attack: Attack) -> None:
    result, problems = siege.seen[attack.name]
    assert not problems, f"{problems}: {result}"


def test_no_program_survives_and_the_zygotes_stay_alive(siege: Siege) -> None:
    assert siege.before
    assert siege.after == siege.before
    assert siege.last_words.stdout == b"CANARY\n"


def test_close_leaves_no_process(siege: Siege) -> None:
    assert not siege.left


def test_corpus_is_broad() -> None:
    counts = {attack.category: 0 for attack in CORPUS}
    for attack in CORPUS:
        counts[attack.category] += 1
    assert len(CORPUS) >= 60
    assert min(counts.values()) >= 10
    assert set(counts) == {"escape", "exfiltration", "exhaustion", "forgery", "orphaning", "kernel"}
