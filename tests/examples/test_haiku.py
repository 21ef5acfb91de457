"""The example of a custom reward: found by its entry point, run by the verifier's worker pool."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

from services.verifier.workers.pool import WorkerPool
from turnout import Question

EXAMPLE = Path(__file__).parents[2] / "examples/rewards"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example, installed as pip would do it."""
    shutil.copy(EXAMPLE / "haiku.py", tmp_path)
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "my_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [f"{name} = {place}\n" for name, place in project["entry-points"]["turnout.rewards"].items()]
    (info / "entry_points.txt").write_text("[turnout.rewards]\n" + "".join(points))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
async def test_the_example_judges_in_a_worker() -> None:
    pool = WorkerPool(num_workers=1, cpu_seconds=5.0, wall_seconds=60.0, memory_bytes=1 << 30)
    question = Question(id="q", kind="haiku", prompt="Write a haiku.")
    try:
        right = await pool.judge(question, "An old silent pond\nA frog jumps in\nSplash! Silence again", False)
        short = await pool.judge(question, "An old silent pond\nA frog", False)
    finally:
        await pool.aclose()
    assert (right.reward, right.correct, right.feedback) == (1.0, True, "")
    assert (round(short.reward, 3), short.correct) == (0.667, False)
    assert short.feedback == "A haiku has 3 lines; this response has 2."


def test_the_example_imports_nothing_else() -> None:
    source = (EXAMPLE / "haiku.py").read_text()
    imports = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert imports == ["from __future__ import annotations", "from turnout import Judgement, Question"]
    assert len(source.splitlines()) <= 20
