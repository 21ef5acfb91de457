"""The live view, rendered as text."""

from __future__ import annotations

from rich.console import Console

from services.contracts.records import Evaluation, Run, Service, Step
from turnout.cli.views.live import render
from turnout.cli.views.progress import Progress

STEPS = [
    Step(step=n, at=0.0, metrics={"reward_mean": n / 4, "accuracy": 0.5, "seconds": 30.0, "policy_entropy_nats": 0.25})
    for n in (1, 2, 3)
]


def drawn(progress: Progress) -> str:
    console = Console(width=120, record=True, force_terminal=False)
    with console.capture() as capture:
        console.print(render(progress, "footer"))
    return capture.get()


def test_the_view_shows_progress_services_and_time_left() -> None:
    progress = Progress("r-1", run=Run(id="r-1", name="small", state="running", step=3, num_steps=5), steps=STEPS)
    progress.evaluations = [
        Evaluation(step=0, at=0.0, split="test", num_questions=64, num_samples=16, accuracy=0.25, pass_at_k=0.5)
    ]
    progress.services = [
        Service(
            kind="learner",
            instance="learner-0",
            url="",
            state="ready",
            pid=1,
            started_at=0.0,
            at=0.0,
            waiting_for="scored groups",
            waiting_since=0.0,
        )
    ]
    text = drawn(progress)
    assert "step 3/5" in text
    assert "1:00 left" in text
    assert "0.750" in text
    assert "▁▅█" in text or "▁▄█" in text
    assert "policy 0.250 nats  teacher -" in text
    assert "avg@16 25.0%" in text
    assert "scored groups" in text


def test_the_view_says_when_the_api_is_away_and_why_a_run_failed() -> None:
    assert "gone" in drawn(Progress("r-1", fault="gone"))
    progress = Progress("r-1", run=Run(id="r-1", name="small", state="failed", reason="No such model."))
    assert "No such model." in drawn(progress)
    progress.fault = "No API answers."
    assert "No API answers." in drawn(progress)
