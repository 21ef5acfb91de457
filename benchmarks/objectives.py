"""Objectives compared: the section and the plot of what `make experiment` found, from its report.

Prints the section and writes docs/objectives.png. `--results FILE` names another experiment's results.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from benchmarks._runs import table
from services.contracts.records import Estimate, Experiment, MethodResult, Record, Results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".turnout" / "experiment" / "report" / "results.json"
PLOT = ROOT / "docs" / "objectives.png"
COLOURS = ("#ee6677", "#228833", "#4477aa", "#ccbb44", "#aa3377", "#66ccee")
SHOWN = {
    "routing_ratio_sdpo": "share of rollouts routed to SDPO",
    "teacher_entropy_nats": "teacher entropy (nats)",
    "response_tokens_mean": "response tokens",
}


class Report(Record, frozen=True, kw_only=True):
    """results.json."""

    experiment: Experiment
    results: Results


def main() -> None:
    """Print the section and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.results.exists():
        raise SystemExit(f"{options.results} does not exist. Run make experiment first, or name a file with --results.")
    report = msgspec.json.decode(options.results.read_bytes(), type=Report)
    show(report)
    plot(report.results.methods)


def show(report: Report) -> None:
    experiment, results = report.experiment, report.results
    steps = experiment.file["run"]["training"]["steps"]
    print("## Objectives on the embedded benchmark\n")
    print(
        f"`make experiment`: strictly on-policy, {steps} steps, {len(results.seeds)} seeds not used in tuning, "
        "learning rates tuned per method; mean and 95% interval over seeds. Accuracy is avg@k on 64 test questions "
        f"by step; the score is the mean of the last {experiment.file.get('last_evaluations', 3)} evaluations. "
        "Plot: [objectives.png](objectives.png), bands from the lowest to the highest seed.\n"
    )
    marks = [point.step for point in results.methods[0].curve]
    marks = [mark for mark in marks if mark in (0, 25, 50, 100) or mark % 100 == 0]
    rows = [
        [item.method, rate(experiment, item.method), *accuracies(item, marks), span(item.score)]
        for item in results.methods
    ]
    print(table(["objective", "learning rate", *(f"step {mark}" for mark in marks), "score"], rows))
    print("\nThe first and the last fifth of the steps:\n")
    head = ["objective"]
    for label in SHOWN.values():
        head += [f"{label}, first", "last"]
    rows = [[item.method, *ends(item), f"{item.seconds_per_step.mean:.2f}"] for item in results.methods]
    print(table([*head, "s a step"], rows))
    print()
    print(table(["claim", "verdict", "difference"], [[c.claim, c.verdict, span(c.difference)] for c in results.claims]))


def rate(experiment: Experiment, method: str) -> str:
    return f"{(experiment.chosen or {})[method]['optimizer.learning_rate']:g}"


def accuracies(item: MethodResult, marks: list[int]) -> list[str]:
    by_step = {point.step: point.mean for point in item.curve}
    return [f"{by_step[mark]:.3f}" for mark in marks]


def span(found: Estimate) -> str:
    """Mean and interval of an estimate."""
    if found.mean is None:
        return "-"
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]" if found.low is not None else f"{found.mean:.3f}"


def ends(item: MethodResult) -> list[str]:
    """Each metric in the first and the last fifth; what is 0 throughout does not exist, like GRPO's teacher."""
    cells: list[str] = []
    for metric in SHOWN:
        values = item.windows[metric]
        cells += [f"{values[index]:.2f}" if any(values) else "-" for index in (0, -1)]
    return cells


def plot(methods: list[MethodResult]) -> None:
    """Accuracy by step, and three metrics by fifths of the run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7))
    places = [axes[0][0], axes[0][1], axes[1][0], axes[1][1]]
    for item, colour in zip(methods, COLOURS, strict=False):
        marks = [point.step for point in item.curve]
        places[0].plot(marks, [point.mean for point in item.curve], "o-", label=item.method, color=colour, markersize=3)
        low, high = [point.low for point in item.curve], [point.high for point in item.curve]
        places[0].fill_between(marks, low, high, color=colour, alpha=0.12, linewidth=0)
        for axis, metric in zip(places[1:], SHOWN, strict=True):
            values = item.windows[metric]
            if any(values):
                middles = [(index + 0.5) * marks[-1] / len(values) for index in range(len(values))]
                axis.plot(middles, values, "o-", color=colour, markersize=3)
    for axis, label in zip(places, ["avg@k on test questions", *SHOWN.values()], strict=True):
        axis.set(xlabel="step", ylabel=label)
    places[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=110)


if __name__ == "__main__":
    main()
