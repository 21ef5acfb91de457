"""Reports from recorded REST data."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from services.contracts.errors import ConfigurationError, MalformedMessageError
from services.contracts.records import Evaluation, Run, Step
from services.contracts.step_metrics import CHARTS, STEP_METRICS
from turnout.cli.output import duration, sparkline
from turnout.cli.run_data import RunData
from turnout.cli.views import corrections
from turnout.cli.views.compare import row_of
from turnout.cli.views.corrections import MAX_TOKENS, NUM_TOKENS
from turnout.cli.views.plots import comparison_plot, report_plots, smoothed
from turnout.cli.views.report import accuracy_rows, headline, report_folder, summary_rows, write_report


def recorded(steps: int = 20) -> RunData:
    """A run as the API returns it, with every metric."""
    run = Run(
        id="r-1",
        name="a <b> run",
        state="succeeded",
        step=steps,
        num_steps=steps,
        started_at=1000.0,
        finished_at=1125.0,
        config={"objective": {"name": "srpo"}, "model": {"path": "m"}},
    )
    history = [
        Step(step=n, at=1000.0 + n, metrics=dict.fromkeys(STEP_METRICS, n / steps), groups={"fed": n, "trained": n})
        for n in range(1, steps + 1)
    ]
    evaluations = [
        Evaluation(
            step=step, at=0.0, split="validation", num_questions=64, num_samples=16, accuracy=accuracy, pass_at_k=0.9
        )
        for step, accuracy in ((0, 0.25), (10, 0.55), (20, 0.5))
    ]
    return RunData(run=run, steps=history, evaluations=evaluations)


@pytest.mark.parametrize("run_id", ["..", "../../x", "/etc", "a/b", "", "a\0"])
def test_no_name_that_an_api_gives_a_run_leads_out_of_the_home(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(MalformedMessageError):
        report_folder(tmp_path, run_id)
    assert report_folder(tmp_path, "demo-3f9c2a1b") == tmp_path / "runs" / "demo-3f9c2a1b" / "report"


def test_texts_of_a_run_make_no_html_in_either_report(tmp_path: Path) -> None:
    data = recorded()
    evil = "<script>alert(1)</script>\x1b[31m|\n# x"
    folder = write_report(msgspec.structs.replace(data, run=msgspec.structs.replace(data.run, reason=evil)), tmp_path)
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert "&lt;script&gt;alert(1)" in text
        assert "<script" not in text
    assert "\x1b" not in (folder / "report.md").read_text()


def test_the_report_tells_before_and_after(tmp_path: Path) -> None:
    data = recorded()
    assert headline(data).endswith("avg@16 went from 25.0% to 50.0% (+25.0 points) on 64 held-out questions.")
    assert accuracy_rows(data)[:2] == [
        ["", "before", "after step 20", "best (step 10)"],
        ["avg@16", "25.0%", "50.0%", "55.0%"],
    ]
    rows = dict(summary_rows(data))
    assert rows["objective"] == "srpo"
    assert rows["wall-clock time"] == "2:05"
    assert rows["groups trained"] == "20"
    folder = write_report(data, tmp_path / "deep" / "report")
    markdown = (folder / "report.md").read_text()
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", markdown)
    assert len(pictures) == len(CHARTS)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_the_page_stands_alone_and_is_escaped(tmp_path: Path) -> None:
    page = (write_report(recorded(), tmp_path) / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(CHARTS)
    assert "a &lt;b&gt; run" in page
    assert "<b>" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page


def test_a_run_without_history_still_has_a_report(tmp_path: Path) -> None:
    data = RunData(run=Run(id="r", name="young", state="failed", reason="No model.", num_steps=4))
    assert report_plots(data) == []
    assert comparison_plot([data]) is None
    page = (write_report(data, tmp_path) / "report.html").read_text()
    assert "young failed after step 0 of 4." in page
    assert "No model." in page


def test_a_report_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_report(recorded(), tmp_path / "file" / "report")


def test_comparing_shows_figures_side_by_side() -> None:
    row = row_of(recorded())
    assert (row["accuracy_before"], row["accuracy_after"], row["accuracy_best"]) == (0.25, 0.5, 0.55)
    assert row["best_step"] == 10
    picture = comparison_plot([recorded(), recorded(10)])
    assert picture is not None
    assert picture.startswith(b"\x89PNG")


def test_small_forms() -> None:
    assert sparkline([]) == ""
    assert sparkline([1, 1]) == "▁▁"
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█"
    assert duration(59.6) == "1:00"
    assert duration(3723) == "1:02:03"
    assert smoothed([0.0, 3.0, 6.0], width=3) == [1.5, 3.0, 4.5]


class Stored:
    """A client that has a group of some steps."""

    def __init__(self, groups: dict[int, dict[str, object]]) -> None:
        self.groups = groups

    def samples(self, run_id: str, *, step: int, limit: int) -> list[dict[str, object]]:
        return [self.groups[step]] if step in self.groups else []


def sampled(step: int, route: str, tokens: list[str]) -> dict[str, object]:
    """A group as the API returns it: a failed response of these tokens, and a correct one."""
    numbers = [float(place) for place in range(len(tokens))]
    failed = {
        "index": 0,
        "tokens": tokens,
        "route": route,
        "correct": False,
        "logprobs": [None] * len(tokens),
        "divergence": numbers if route == "sdpo" else [],
        "distillation_weight": [0.5] * len(tokens) if route == "sdpo" else [],
        "teacher_entropy": numbers if route == "sdpo" else [],
    }
    right = {"index": 1, "tokens": ["Paris"], "route": "grpo", "correct": True}
    told = {"demonstrations": [1]}
    responses = [
        {"index": 0, "token_ids": [1], "demonstration": "", "told": told if route == "sdpo" else None},
        {"index": 1, "token_ids": [2], "demonstration": "It is Paris."},
    ]
    question = {"id": "q", "kind": "exact", "prompt": "Capital?", "answer": "Paris", "tests": ""}
    return {
        "step": step,
        "question_id": "france",
        "prompt": "Capital <of> France?",
        "answer": "Paris",
        "samples": [failed, right],
        "material": {"question": question, "responses": responses},
    }


def test_a_report_shows_which_tokens_were_corrected(tmp_path: Path) -> None:
    groups = {
        1: sampled(1, "sdpo", ["It", " is", "\n", "<b>"]),
        5: sampled(5, "sdpo", ["not shown"]),
        10: sampled(10, "grpo", ["nothing to correct"]),
        15: sampled(15, "sdpo", ["Rome"] * (MAX_TOKENS + 3)),
        40: sampled(40, "sdpo", ["last"]),
    }
    data = recorded(40)
    found = corrections.find(Stored(groups), data.run)  # type: ignore[arg-type]
    assert [(one.group.step, one.sample.tokens[-1]) for one in found] == [(1, "<b>"), (15, "Rome"), (40, "last")]
    assert found[0].strengths == [0.0, 0.5, 1.0, 1.5]
    assert ["the teacher read", "It is Paris."] in found[0].texts
    folder = write_report(data, tmp_path, found)
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert (
        '0.80)" title="correction 1.500, divergence, nats 3.000, weight 0.50, teacher entropy, nats 3.00">&lt;b&gt;<'
        in page
    )
    assert page.count(">Rome<") == MAX_TOKENS + NUM_TOKENS
    for report in (page, text):
        assert "3 more tokens" in report
        assert "Capital &lt;of&gt; France?" in report
        assert "&lt;b&gt;" in report
    assert "<b>" not in page


def test_a_run_without_a_teacher_has_no_corrections(tmp_path: Path) -> None:
    data = recorded()
    found = corrections.find(Stored({5: sampled(5, "grpo", ["It"])}), data.run)  # type: ignore[arg-type]
    assert found == []
    assert "self-distillation corrected" not in (write_report(data, tmp_path, found) / "report.html").read_text()
