"""SRPO against staleness: the demo's run with max_staleness 0, 1, 2, 4, 8 on a whole deployment; writes a plot."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from services.cli.client import Client
from tests.ring.deployment import demo_config, deployment, finish

PLOT = Path(__file__).resolve().parent.parent / "docs" / "staleness.png"


def measure(client: Client, staleness: int, num_steps: int, seed: int) -> dict[str, float]:
    """One run; figures are means over its second half, accuracy is avg@16 on the test questions."""
    run = client.create_run(
        demo_config(
            name=f"staleness {staleness}",
            training={"steps": num_steps, "max_staleness": staleness, "seed": seed},
            evaluation={"every_steps": num_steps // 4, "max_questions": 64},
        )
    )
    ended = finish(client, run.id)
    if ended.state != "succeeded":
        raise SystemExit(f"run {run.id} is {ended.state}: {ended.reason}")
    steps = list(client.steps(run.id))
    half = steps[len(steps) // 2 :]

    def mean(name: str) -> float:
        return statistics.mean(step.metrics[name] for step in half)

    return {
        **{f"accuracy {item.step}": item.accuracy for item in client.evaluations(run.id)},
        "staleness": mean("staleness_mean"),
        "seconds": statistics.median(step.metrics["seconds"] for step in steps),
        "wait": statistics.median(step.metrics["seconds_wait"] for step in steps),
        "teacher entropy": mean("teacher_entropy_nats"),
        "mismatch": mean("logprob_mismatch_nats"),
        "truncated": mean("importance_weight_truncated_ratio"),
        "reward": mean("reward_mean"),
    }


def main() -> None:
    """Print the section; `--steps` and `--values` shorten it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--values", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder, deployment(Path(folder)) as client:
        for value in options.values:
            found[value] = measure(client, value, options.steps, options.seed)
    marks = sorted(int(name.split()[1]) for name in found[options.values[0]] if name.startswith("accuracy"))
    print("## SRPO against staleness\n")
    print(
        f"The demo's run ({options.steps} steps, seed {options.seed}), `max_staleness` from on-policy upwards. "
        "Accuracy is avg@16 on 64 held-out questions; other figures are means over the second half of the steps, times "
        "medians. One seed: differences of a few points are noise. Plot: [staleness.png](staleness.png).\n"
    )
    accuracy = " | ".join(f"accuracy after {mark}" for mark in marks)
    print(
        f"| max_staleness | {accuracy} | mean age | s a step | of it waiting | teacher entropy | mismatch | truncated |"
    )
    print("|" + "---|" * (8 + len(marks)))
    for value, row in found.items():
        cells = [f"{row[f'accuracy {mark}']:.3f}" for mark in marks]
        cells += [f"{row['staleness']:.2f}", f"{row['seconds']:.2f}", f"{row['wait']:.2f}"]
        cells += [f"{row['teacher entropy']:.3f}", f"{row['mismatch']:.4f}", f"{row['truncated']:.4f}"]
        print(f"| {value} | {' | '.join(cells)} |")
    plot(found, marks)


def plot(found: dict[int, dict[str, float]], marks: list[int]) -> None:
    """Accuracy against steps and against time, one line a value."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for value, row in found.items():
        accuracy = [row[f"accuracy {mark}"] for mark in marks]
        left.plot(marks, accuracy, marker="o", label=f"max_staleness {value}")
        right.plot([mark * row["seconds"] for mark in marks], accuracy, marker="o")
    left.set(xlabel="step", ylabel="avg@16")
    right.set(xlabel="seconds of training (median step times steps)")
    left.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=110)


if __name__ == "__main__":
    main()
