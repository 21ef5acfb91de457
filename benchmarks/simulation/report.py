"""The simulation's tables and plot: fills the generated part of docs/scaling.md."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks._hops import Journey
from benchmarks.simulation.ring import Outcome

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "scaling.md"
PLOT = DOCS / "scaling.png"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->"
MIB = 2**20


def write(
    ring: Outcome, staleness: list[Outcome], failures: list[Outcome], journeys: list[Journey], *, short: bool
) -> None:
    """Fill the page, draw the plot, and print the section for docs/performance.md."""
    mean = round(ring.scenario.mean_tokens)
    own = next(journey for journey in journeys if journey.tokens == mean)
    parts = [
        "Short form: an eighth of the sizes.\n" if short else "",
        f"### Large ring\n\n{ring_table([ring])}\n{costs(ring, own)}",
        f"### Staleness\n\n{ring_table(staleness)}\n{ages_table([ring, *staleness])}",
        f"### Failures\n\n{ring_table(failures)}",
        f"### What one core carries\n\n{capacity_table(journeys)}\n{verdict(ring, own)}",
    ]
    text = PAGE.read_text()
    figures = "\n".join(part for part in parts if part)
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{figures}\n{END}", text, flags=re.DOTALL))
    plot(ring, staleness, journeys)
    scenario = ring.scenario
    print("## A ring of many servers, simulated\n")
    print(
        f"{scenario.servers} servers, {scenario.groups_in_flight} groups in flight, real queue and loops, timed "
        f"engines on a virtual clock: {ring.throughput:.0%} of the slower side alone, with max_staleness "
        f"{scenario.max_staleness} and {scenario.failures_an_hour:g} crashes of each server an hour. "
        "Tables, plot and what is modelled: [scaling.md](scaling.md)."
    )


def ring_table(outcomes: list[Outcome]) -> str:
    """One line a ring."""
    lines = [
        "| servers | groups a step | in flight | max_staleness | crashes | throughput / slower side alone "
        "| learner waits | tokens decoded / trained | mean age | most groups on `scored` | out of turn |",
        "|" + "---:|" * 11,
    ]
    for outcome in outcomes:
        scenario = outcome.scenario
        decoded = outcome.decoded_tokens / sum(step.tokens for step in outcome.steps)
        age = sum(age * share for age, share in outcome.ages.items())
        lines.append(
            f"| {scenario.servers} | {scenario.prompts_per_step} | {scenario.groups_in_flight} "
            f"| {scenario.max_staleness} | {outcome.crashes} | {outcome.throughput:.2f} | {outcome.waiting_share:.0%} "
            f"| {decoded:.2f} | {age:.2f} | {outcome.largest['scored']} | {outcome.max_buffered} |"
        )
    return "\n".join(lines) + "\n"


def ages_table(outcomes: list[Outcome]) -> str:
    """Share of trained tokens by age."""
    oldest = max(max(outcome.ages) for outcome in outcomes)
    lines = [
        f"| groups a step | max_staleness | {' | '.join(f'age {age}' for age in range(oldest + 1))} |",
        "|" + "---:|" * (oldest + 3),
    ]
    for outcome in outcomes:
        cells = [f"{outcome.ages[age]:.0%}" if age in outcome.ages else "" for age in range(oldest + 1)]
        scenario = outcome.scenario
        lines.append(f"| {scenario.prompts_per_step} | {scenario.max_staleness} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def costs(ring: Outcome, own: Journey) -> str:
    """CPU and memory of the large ring."""
    meter, trained = ring.meter, ring.ledger.trained
    first = max(meter.commands.items(), key=lambda item: item[1][1])
    return (
        f"{ring.virtual_seconds / 3600:.2f} hours of ring time in {meter.real_seconds / 60:.1f} minutes. "
        f"Messages carried {ring.scenario.payload_scale:.3g} of the tokens. "
        f"Valkey: {meter.server_seconds / trained * 1000:.2f} ms of CPU a group (most of it {first[0]}), "
        f"{meter.largest_bytes / MIB:.0f} MiB at most; with whole messages, {own.stored_bytes / 1024:.0f} KiB a "
        f"group, that is {own.stored_bytes * ring.largest['scored'] / MIB:.0f} MiB.\n"
    )


def capacity_table(journeys: list[Journey]) -> str:
    """Groups a second by service and response length."""
    lines = [
        "| tokens a rollout | bytes a group on the wire | in Valkey | Valkey ms | learner ms | verifier ms "
        "| rollout ms | Valkey, groups/s | learner, groups/s | verifier, groups/s |",
        "|" + "---:|" * 10,
    ]
    for journey in journeys:
        learner, verifier, rollout = (journey.client_seconds(name) for name in ("learner", "verifier", "rollout"))
        lines.append(
            f"| {journey.tokens} | {journey.wire_bytes} | {journey.stored_bytes:.0f} "
            f"| {journey.server_seconds * 1e3:.2f} | {learner * 1e3:.2f} | {verifier * 1e3:.2f} "
            f"| {rollout * 1e3:.2f} | {1 / journey.server_seconds:.0f} | {1 / learner:.0f} | {1 / verifier:.0f} |"
        )
    return "\n".join(lines) + f"\n\nGroups travel {journeys[0].together} at a time.\n"


def verdict(ring: Outcome, own: Journey) -> str:
    """What the large ring uses of one core each, and what is used up first."""
    groups = ring.groups_a_second
    shares = {
        "Valkey": own.server_seconds * groups,
        "the learner's receiving": own.client_seconds("learner") * groups,
        "all verifiers together": own.client_seconds("verifier") * groups,
    }
    first = max(("Valkey", "the learner's receiving"), key=lambda name: shares[name])
    named = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return (
        f"The large ring moves {groups:.1f} groups a second of 8 x {own.tokens} tokens. Of one core that "
        f"takes: {named}. Of the parts that there is one of, {first} is used up first, at "
        f"{ring.scenario.servers / shares[first]:.0f} servers of this kind; before that the ring "
        f"waits for stragglers (the learner waits {ring.waiting_share:.0%} of the time).\n"
    )


def plot(ring: Outcome, staleness: list[Outcome], journeys: list[Journey]) -> None:
    """Throughput against staleness, the large ring's ages, and capacity against length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 4))
    values = [str(outcome.scenario.max_staleness) for outcome in staleness]
    left.bar(values, [outcome.throughput for outcome in staleness], color="#4477aa")
    left.set(xlabel="max_staleness", ylabel="throughput / slower side alone", ylim=(0, 1))
    left.set_title(f"{staleness[0].scenario.servers} servers, {staleness[0].scenario.prompts_per_step} groups a step")
    middle.bar([str(age) for age in ring.ages], list(ring.ages.values()), color="#4477aa")
    middle.set(xlabel="age of trained tokens (versions)", ylabel="share")
    middle.yaxis.set_major_formatter(PercentFormatter(1.0))
    middle.set_title(f"{ring.scenario.groups_in_flight} groups in flight")
    tokens = [journey.tokens for journey in journeys]
    right.loglog(tokens, [1 / journey.server_seconds for journey in journeys], marker="o", label="Valkey")
    for name in ("learner", "verifier"):
        right.loglog(tokens, [1 / journey.client_seconds(name) for journey in journeys], marker="o", label=name)
    right.set(xlabel="tokens a rollout", ylabel="groups a second on one core")
    right.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=110)
