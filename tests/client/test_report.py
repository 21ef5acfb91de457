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
from turnout.cli.views.compare import row_of
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
