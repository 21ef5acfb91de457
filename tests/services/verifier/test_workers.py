"""Supervised workers: hangs, crashes and memory hogs do not affect other tasks, and faults are never wrong answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from services.contracts.errors import ConfigurationError, InfrastructureError
from services.contracts.messages import Question
from services.verifier.gate import one_second_try
from services.verifier.judge import Judge
from services.verifier.rewards import registry
from services.verifier.workers.pool import UNREADABLE, WorkerPool
from tests.services.verifier.builders import question, rollout

HALF = question("math", r"\frac{1}{2}")
CATASTROPHIC = question("regex", r"^(a+)+$")
HANGING = "a" * 60 + "b"


async def test_math_compares_by_value() -> None:
    patient = WorkerPool(num_workers=1, cpu_seconds=30.0, wall_seconds=120.0, memory_bytes=2 << 30)
    for answer, text, correct in [
        (r"\frac{1}{2}", "Therefore it is $0.5$.", True),
        (r"\frac{1}{2}", "<answer>1/2</answer>", True),
        (r"\frac{1}{2}", r"First \boxed{3}, then \boxed{\frac{2}{4}}", True),
        (r"\frac{1}{2}", "<answer>2</answer>", False),
        ("(x+1)^2", "$x^2+2x+1$", True),
        (r"\{1, 2\}", r"\boxed{\{2, 1\}}", True),
        (r"\{1, 2\}", r"So \boxed{1} and \boxed{2}.", True),
        ("42", "no idea", False),
        ("42", r"\boxed{42", False),
        ("1000", "$1,000$", True),
    ]:
        found = await patient.judge(question("math", answer), text, False)
        assert found.correct == correct, text
        assert bool(found.feedback) != correct
    with pytest.raises(InfrastructureError, match="answer is missing or empty"):
        await patient.judge(question("math", ""), "$1$", False)
    await patient.aclose()


@pytest.mark.asyncio(loop_scope="module")
async def test_many_answers_of_which_every_twentieth_hangs(pool: WorkerPool) -> None:
    texts = [
        HANGING if i % 20 == 0 else f"It is $\\frac{{{i}}}{{{2 * i}}}$." if i % 2 else f"It is ${i}/3$."
        for i in range(300)
    ]
    found = await asyncio.gather(
        *(pool.judge(CATASTROPHIC if text is HANGING else HALF, text, False) for text in texts)
    )
    for i, judgement in enumerate(found):
        if i % 20 == 0:
            assert judgement == UNREADABLE, texts[i]
        else:
            assert judgement.correct == (i % 2 == 1), texts[i]


@pytest.mark.asyncio(loop_scope="module")
async def test_catastrophic_patterns_are_cut_off_and_others_match(pool: WorkerPool) -> None:
    assert await pool.judge(CATASTROPHIC, HANGING, False) == UNREADABLE
    assert (await pool.judge(CATASTROPHIC, "aaa", False)).correct
    assert not (await pool.judge(question("regex", "^b", {"full": True}), "bb", False)).correct
    with pytest.raises(InfrastructureError, match="not a regular expression"):
        await pool.judge(question("regex", "("), "x", False)


HOSTILE = [
    *(
        "",
        "$",
        "$$",
        "<answer></answer>",
        r"$\frac{1}{0}$",
        "$\ud7ff\x00$",
        r"$\lim_{x}$",
        "__import__('os').system('x')",
    ),
    *(r"\boxed{" * 50, "{" * 500, "$1" + "0" * 9000, "$x" + "'" * 300 + "$", "9" * 20000),
    r"$\begin{pmatrix}1\end{pmatrix}$",
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("asked", [HALF, question("regex", r"\w+1$")])
async def test_no_text_makes_a_supervised_reward_fault(pool: WorkerPool, asked: Question) -> None:
    for text in HOSTILE:
        found = await pool.judge(asked, text, True)
        assert not found.correct


OWN = """
import os, signal, time
from services.contracts.judgement import Judgement

def shouting(question, response_text, truncated):
    return Judgement(reward=1.0 if response_text.isupper() else 0.0, correct=response_text.isupper(), feedback="LOUDER")

def length(question, response_text, truncated):
    return min(1.0, len(response_text) / 10)

def hazard(question, response_text, truncated):
    if response_text == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if response_text.startswith("crash once"):
        try:
            os.mkdir(response_text.removeprefix("crash once "))
        except FileExistsError:
            return 1.0
        os._exit(3)
    if response_text.startswith("count "):
        _, what, folder = response_text.split()
        os.mkdir(os.path.join(folder, f"{time.monotonic_ns()}"))
        if what == "die":
            os._exit(3)
        time.sleep(1000)
    if response_text == "sleep":
        time.sleep(1000)
    if response_text == "spin":
        while True: pass
    if response_text == "hog":
        return len(bytearray(10 << 30)) * 0
    if response_text == "raise":
        raise KeyError("nothing there")
    if response_text == "nonsense":
        return "1"
    return float(not os.environ.get("TURNOUT_SECRET"))
"""


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with rewards, as pip would leave it."""
    (tmp_path / "own_rewards.py").write_text(OWN)
    info = tmp_path / "own_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-rewards\nVersion: 1.0\n")
    names = ("shouting", "length", "hazard")
    points = "".join(f"{name} = own_rewards:{name}\n" for name in names) + "broken = own_rewards:missing\n"
    (info / "entry_points.txt").write_text(f"[turnout.rewards]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TURNOUT_SECRET", "x")
    return tmp_path


@pytest.fixture
async def own_judge(own_package: Path) -> AsyncIterator[Judge]:
    pool = WorkerPool(num_workers=2, cpu_seconds=0.3, wall_seconds=120.0, memory_bytes=1 << 30)
    yield Judge(pool, {})
    await pool.aclose()


@pytest.fixture
async def impatient_judge(own_package: Path) -> AsyncIterator[Judge]:
    """A pool whose tasks exceed their wall time long before their CPU time, as on an overloaded machine."""
    pool = WorkerPool(num_workers=2, cpu_seconds=600.0, wall_seconds=0.5, memory_bytes=1 << 30)
    yield Judge(pool, {})
    await pool.aclose()


async def test_rewards_of_installed_packages_judge(own_judge: Judge) -> None:
    assert {"shouting", "length", "mcq"} <= set(own_judge.kinds)
    loud = await own_judge.verdict(question("shouting"), rollout("YES"))
    assert (loud.status, loud.reward, loud.correct, loud.feedback) == ("ok", 1.0, True, "LOUDER")
    half = await own_judge.verdict(question("length"), rollout("12345"))
    assert (half.reward, half.correct) == (0.5, False)
    safe = await own_judge.verdict(question("hazard"), rollout("environment"))
    assert safe.reward == 1.0  # workers do not inherit our environment with its keys


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("crash", "died (signal 11)"),
        ("spin", "0.3 s of CPU time"),
        ("hog", "ran out of memory"),
        ("raise", "nothing there"),
        ("nonsense", "returned a str"),
    ],
)
async def test_a_reward_that_fails_is_a_fault_not_a_zero(own_judge: Judge, text: str, fault: str) -> None:
    verdict = await own_judge.verdict(question("hazard"), rollout(text))
    assert verdict.status == "infrastructure_fault"
    assert fault in verdict.fault
    after = await own_judge.verdict(question("hazard"), rollout("fine"))
    assert (after.status, after.reward) == ("ok", 1.0)


async def test_exceeding_only_the_wall_time_is_a_fault_not_a_zero(impatient_judge: Judge) -> None:
    own = await impatient_judge.verdict(question("hazard"), rollout("sleep"))
    built_in = await impatient_judge.verdict(CATASTROPHIC, rollout(HANGING))
    for verdict in (own, built_in):
        assert verdict.status == "infrastructure_fault"
        assert "timed out after 0.5 s" in verdict.fault


async def test_a_reward_that_waits_is_not_tried_again(impatient_judge: Judge, tmp_path: Path) -> None:
    (tries := tmp_path / "tries").mkdir()
    verdict = await impatient_judge.verdict(question("hazard"), rollout(f"count sleep {tries}"))
    assert verdict.status == "infrastructure_fault"
    assert len(list(tries.iterdir())) == 1


async def test_the_tasks_of_a_group_have_one_second_try(own_judge: Judge, tmp_path: Path) -> None:
    (tries := tmp_path / "tries").mkdir()
    with one_second_try():
        asked = [own_judge.verdict(question("hazard"), rollout(f"count die {tries}")) for _ in range(4)]
        verdicts = await asyncio.gather(*asked)
    assert {verdict.status for verdict in verdicts} == {"infrastructure_fault"}
    assert len(list(tries.iterdir())) == 4 + 1


async def test_a_worker_that_dies_once_costs_nothing(own_judge: Judge, tmp_path: Path) -> None:
    verdict = await own_judge.verdict(question("hazard"), rollout(f"crash once {tmp_path / 'marker'}"))
    assert (verdict.status, verdict.reward) == ("ok", 1.0)


async def test_a_package_that_does_not_load_is_named(own_judge: Judge) -> None:
    verdict = await own_judge.verdict(question("broken"), rollout("x"))
    assert verdict.status == "infrastructure_fault"
    assert "'broken' cannot be loaded" in verdict.fault


async def test_the_pool_outlives_its_fork_server(own_judge: Judge) -> None:
    pool = own_judge._waited_for["hazard"]
    assert isinstance(pool, WorkerPool)
    assert (await own_judge.verdict(question("length"), rollout("1"))).status == "ok"
    assert pool._server is not None
    pool._server.process.kill()
    verdicts = await asyncio.gather(*(own_judge.verdict(question("length"), rollout("1" * 10)) for _ in range(20)))
    assert [verdict.reward for verdict in verdicts] == [1.0] * 20


def test_a_package_cannot_use_the_name_of_a_built_in_kind(own_package: Path) -> None:
    points = own_package / "own_rewards-1.0.dist-info" / "entry_points.txt"
    points.write_text("[turnout.rewards]\nmcq = own_rewards:length\n")
    with pytest.raises(ConfigurationError, match="mcq"):
        registry.own_kinds()


def test_closing_leaves_no_process() -> None:
    async def use() -> list[int]:
        pool = WorkerPool(num_workers=1, cpu_seconds=5, wall_seconds=60, memory_bytes=1 << 30)
        await pool.judge(question("regex", "a"), "a", False)
        server = pool._server
        assert server is not None
        pids = [server.process.pid, *server._workers]
        await pool.aclose()
        return pids

    pids = asyncio.run(use())
    assert len(pids) == 2
    for process in [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]:
        process.wait(timeout=30)
