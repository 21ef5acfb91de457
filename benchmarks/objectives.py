"""Objectives compared: SRPO, GRPO and SDPO on the embedded benchmark through the whole ring, three seeds each.

Strictly on-policy (max_staleness 0), so that only the objective differs. Prints the section and writes
docs/objectives.png. `--names` adds `srpo-beta-0` and `advantage_mix`; `--steps 20 --seeds 0` is a short form.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._runs import Curve, band, play, seeds_text, smooth, spread, table
from tools.deployment import deployment

PLOT = Path(__file__).resolve().parent.parent / "docs" / "objectives.png"
NUM_EVALUATIONS = 6
OBJECTIVES: dict[str, dict[str, Any]] = {
    "srpo": {"name": "srpo"},
    "grpo": {"name": "grpo"},
    "sdpo": {"name": "sdpo"},
    "srpo-beta-0": {"name": "srpo", "beta": 0.0},
    "advantage_mix": {"name": "advantage_mix"},
}
COLOURS = dict(zip(OBJECTIVES, ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377"), strict=True))
SHOWN = {
    "routing_ratio_sdpo": "share of rollouts routed to SDPO",
    "teacher_entropy_nats": "teacher entropy (nats)",
    "response_tokens_mean": "response tokens",
}


def main() -> None:
    """Play all runs, then print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--names", nargs="+", choices=list(OBJECTIVES), default=["srpo", "grpo", "sdpo"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    options = parser.parse_args()
    found: dict[str, list[Curve]] = {name: [] for name in options.names}
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder, deployment(Path(folder)) as client:
        for seed in options.seeds:
            for name in options.names:
                curve = play(
                    client,
                    name,
                    steps=options.steps,
                    seed=seed,
                    evaluations=NUM_EVALUATIONS,
                    objective=OBJECTIVES[name],
                    training={"max_staleness": 0},
                    optimizer={"learning_rate": options.learning_rate},
                )
                found[name].append(curve)
    show(found, options.steps, options.seeds, options.learning_rate)
    plot(found)


def show(found: dict[str, list[Curve]], steps: int, seeds: list[int], learning_rate: float) -> None:
    marks = sorted(next(iter(found.values()))[0].accuracy)
    print("## Objectives on the embedded benchmark\n")
    print(
        f"The demo's run with `max_staleness` 0 and learning rate {learning_rate:g} for all ({steps} steps, "
        f"{seeds_text(seeds)}). Accuracy is avg@16 on 64 held-out questions by step. "
        "Plot: [objectives.png](objectives.png), bands from the lowest to the highest seed.\n"
    )
    rows = [
        [name, *(spread(curves, lambda curve, mark=mark: curve.accuracy[mark]) for mark in marks)]
        for name, curves in found.items()
    ]
    print(table(["objective", *(f"step {mark}" for mark in marks)], rows))
    print("\nThe first and the last fifth of the steps:\n")
    head = ["objective"]
    for label in SHOWN.values():
        head += [f"{label}, first", "last"]
    rows = []
    for name, curves in found.items():
        cells = [name]
        for metric in SHOWN:
            if absent(curves, metric):
                cells += ["-", "-"]
                continue
            cells.append(spread(curves, lambda curve, metric=metric: curve.mean(metric, 0.0, 0.2), 2))
            cells.append(spread(curves, lambda curve, metric=metric: curve.mean(metric, 0.8, 1.0), 2))
        rows.append([*cells, spread(curves, lambda curve: curve.pace(), 2)])
    print(table([*head, "s a step"], rows))


def absent(curves: list[Curve], metric: str) -> bool:
    """The objective has no such thing: GRPO has no teacher."""
    return not any(row[metric] for curve in curves for row in curve.metrics)


def plot(found: dict[str, list[Curve]]) -> None:
    """Accuracy by step, and three metrics over the run (running means of ten steps)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7))
    places = [axes[0][0], axes[0][1], axes[1][0], axes[1][1]]
    for name, curves in found.items():
        marks = sorted(curves[0].accuracy)
        band(places[0], marks, [[curve.accuracy[mark] for mark in marks] for curve in curves], name, "o", COLOURS[name])
        for axis, metric in zip(places[1:], SHOWN, strict=True):
            if absent(curves, metric):
                continue
            rows = [smooth([row[metric] for row in curve.metrics]) for curve in curves]
            band(axis, range(1, len(rows[0]) + 1), rows, name, color=COLOURS[name])
    for axis, label in zip(places, ["avg@16 on held-out questions", *SHOWN.values()], strict=True):
        axis.set(xlabel="step", ylabel=label)
    places[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=110)


if __name__ == "__main__":
    main()
