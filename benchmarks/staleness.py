"""SRPO against staleness: the demo's run with max_staleness 0, 1, 2, 4, 8 and three seeds on one deployment.

Prints the section and writes docs/staleness.png. `--steps 20 --values 0 2 --seeds 0` is a short form.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks._runs import Curve, band, play, seeds_text, spread, table
from tools.deployment import deployment

PLOT = Path(__file__).resolve().parent.parent / "docs" / "staleness.png"
NUM_EVALUATIONS = 4


def main() -> None:
    """Play all runs, then print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--values", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    found: dict[int, list[Curve]] = {value: [] for value in options.values}
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder, deployment(Path(folder)) as client:
        for seed in options.seeds:  # values in turn, so that a change of the machine's load meets all of them
            for value in options.values:
                curve = play(
                    client,
                    f"max_staleness {value}",
                    steps=options.steps,
                    seed=seed,
                    evaluations=NUM_EVALUATIONS,
                    training={"max_staleness": value},
                )
                found[value].append(curve)
    show(found, options.steps, options.seeds)
    plot(found)


def show(found: dict[int, list[Curve]], steps: int, seeds: list[int]) -> None:
    marks = sorted(next(iter(found.values()))[0].accuracy)
    half = marks[len(marks) // 2]
    budget = min(curve.seconds for curves in found.values() for curve in curves)
    print("## SRPO against staleness\n")
    print(
        f"The demo's run ({steps} steps, {seeds_text(seeds)}), with `max_staleness` from on-policy upwards. Accuracy "
        f"is avg@16 on 64 held-out questions, at equal steps and after {budget:.0f} s of training "
        "(the duration of the fastest run); other figures are means over the second half of the steps. Times exclude "
        "evaluations and the steps right after them, whose groups were sampled during the evaluation. "
        "Plot: [staleness.png](staleness.png), bands from the lowest to the highest seed.\n"
    )
    head = ["max_staleness", f"after {half} steps", f"after {marks[-1]} steps", f"after {budget:.0f} s", "s a step"]
    head += ["of it waiting", "mean age", "teacher entropy", "truncated weights", "mismatch", "SDPO share"]
    rows = []
    for value, curves in found.items():
        rows.append(
            [
                str(value),
                spread(curves, lambda curve: curve.accuracy[half]),
                spread(curves, lambda curve: curve.accuracy[marks[-1]]),
                spread(curves, lambda curve: curve.accuracy_after(budget)),
                spread(curves, lambda curve: curve.pace(), 2),
                spread(curves, lambda curve: curve.pace("seconds_wait"), 2),
                spread(curves, lambda curve: curve.mean("staleness_mean"), 2),
                spread(curves, lambda curve: curve.mean("teacher_entropy_nats")),
                spread(curves, lambda curve: curve.mean("importance_weight_truncated_ratio"), 5),
                spread(curves, lambda curve: curve.mean("logprob_mismatch_nats"), 4),
                spread(curves, lambda curve: curve.mean("routing_ratio_sdpo"), 2),
            ]
        )
    print(table(head, rows))


def plot(found: dict[int, list[Curve]]) -> None:
    """Accuracy against steps and against time, one line a value."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for value, curves in found.items():
        marks = sorted(curves[0].accuracy)
        rows = [[curve.accuracy[mark] for mark in marks] for curve in curves]
        band(left, marks, rows, f"max_staleness {value}", "o")
        longest = min(curve.seconds for curve in curves)
        times = [longest * part / 20 for part in range(21)]
        band(right, times, [[curve.accuracy_after(time) for time in times] for curve in curves], "")
    left.set(xlabel="step", ylabel="avg@16")
    right.set(xlabel="seconds of training, evaluations not counted")
    left.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=110)


if __name__ == "__main__":
    main()
