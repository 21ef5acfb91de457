"""A ring of many servers on a virtual clock: throughput, staleness, cost, and what saturates first.

`python -m benchmarks.simulation` writes the tables of docs/scaling.md and docs/scaling.png. `--servers`, `--in-flight`,
`--failures` and `--max-staleness` give the large ring other sizes; `--short` plays everything small, and `--one` plays
the large ring only and writes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable

from benchmarks import _hops
from benchmarks.simulation import report
from benchmarks.simulation.ring import Outcome, simulate
from benchmarks.simulation.scenario import Scenario

STALENESS = (0, 1, 2, 4, 8)
FAILURES = (1.0, 4.0)
FAULTY = 3
"""Which of the sweep's rings is played with failures too."""
STEADY_STEPS = 6
"""Least number of steps between the ring's filling and its emptying."""
TOKENS = (64, 1024, 8192)
TOGETHER = 8
"""Groups at a time where a core has all the work that it can do."""


def play(scenarios: Iterable[Scenario], url: str) -> list[Outcome]:
    """One after another, with a word on stderr."""
    outcomes = []
    for scenario in scenarios:
        started = time.monotonic()
        outcome = simulate(scenario, url)
        check(outcome)
        outcomes.append(outcome)
        print(
            f"  {scenario.servers} servers, {scenario.groups_in_flight} groups in flight, max_staleness "
            f"{scenario.max_staleness}, {scenario.failures_an_hour:g} failures an hour: throughput "
            f"{outcome.throughput:.2f}, {outcome.virtual_seconds:.0f} virtual s in {time.monotonic() - started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return outcomes


def check(outcome: Outcome) -> None:
    """Stop where the ring broke a promise: such figures are worth nothing."""
    scenario, counts = outcome.scenario, outcome.ledger.groups(outcome.fed)
    trained = sorted(sequence for step in outcome.last_steps for sequence in step.sequences)
    if len(set(trained)) != len(trained) or len(trained) != counts["trained"]:
        raise SystemExit("a group was trained twice")
    if counts["in_flight"] or any(outcome.left.values()):
        raise SystemExit(f"groups are left over: {counts}, {outcome.left}")
    if max(outcome.ages) > scenario.max_staleness:
        raise SystemExit(f"a token of age {max(outcome.ages)} was trained")


def num_steps(max_staleness: int, steady: int) -> int:
    """Steps to fill the ring, to empty it, and whole rounds between: n + 1 steps end in one burst."""
    depth = max_staleness + 1
    return depth * (2 + -(-steady // depth))


def main() -> None:
    """Play all scenarios and write the page; the section for docs/performance.md goes to stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=64)
    parser.add_argument("--in-flight", type=int, default=10_000, help="groups in flight in the large ring")
    parser.add_argument("--max-staleness", type=int, default=4, help="of the large ring")
    parser.add_argument("--failures", type=float, default=1.0, help="crashes of each server an hour, in the large ring")
    parser.add_argument("--short", action="store_true", help="a tenth of everything, to see whether it works")
    parser.add_argument("--one", action="store_true", help="only the large ring; prints its figures")
    options = parser.parse_args()
    scale = 8 if options.short else 1
    large = Scenario(
        servers=max(2, options.servers // scale),
        prompts_per_step=max(8, options.in_flight // (options.max_staleness + 1) // scale),
        max_staleness=options.max_staleness,
        steps=num_steps(options.max_staleness, 1),
        checkpoint_every=4,
        failures_an_hour=options.failures,
    )
    base = dataclasses.replace(large, prompts_per_step=512 // scale, failures_an_hour=0.0)
    sweep = [
        dataclasses.replace(base, max_staleness=value, steps=num_steps(value, STEADY_STEPS)) for value in STALENESS
    ]
    faults = [dataclasses.replace(sweep[FAULTY], failures_an_hour=rate) for rate in FAILURES]
    with _hops.valkey() as url:
        ring = play([large], url)[0]
        if options.one:
            return print(report.ring_table([ring]))
        staleness, failures = play(sweep, url), play(faults, url)
        failures.insert(0, staleness[FAULTY])
        mean = round(large.mean_tokens)
        lengths = sorted({*TOKENS, mean})
        journeys = [_hops.measure(url, tokens, max(16, 60_000 // tokens), TOGETHER) for tokens in lengths]
    report.write(ring, staleness, failures, journeys, short=options.short)


if __name__ == "__main__":
    main()
