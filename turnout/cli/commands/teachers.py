"""`turnout runs teachers`: a stored response as several teachers read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.contracts.errors import ConfigurationError, ConflictError, NotFoundError
from turnout.cli.options import Id, Json, Url, examples

if TYPE_CHECKING:
    from services.contracts.records import TeacherReadings

app = typer.Typer(rich_markup_mode=None)
BINS = 10


@app.command(
    epilog=examples(
        "turnout runs teachers demo-3f --teacher training --teacher training,feedback",
        "turnout runs teachers demo-3f --step 10 --response 2 --teacher 0 --teacher reference",
    )
)
def teachers(
    run_id: Id,
    teacher: Annotated[
        list[str],
        typer.Option(
            help="What a teacher reads in addition to the question, separated by commas: numbers of responses of the "
            "group, reference, feedback, or training for what training's teacher read. Repeat it for up to four.",
        ),
    ],
    step: Annotated[int | None, typer.Option(min=0, help="Step of the group; by default the newest.")] = None,
    response: Annotated[
        int | None, typer.Option(min=0, help="By default the first that training's teacher read.")
    ] = None,
    version: Annotated[int | None, typer.Option(min=0, help="Only this weight version; by default the newest.")] = None,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Have a stored response read by several teachers with the run's weights: how much likelier is each token to them
    than to the policy, which reads the question alone? A rollout server answers; training continues."""
    from turnout.client.run_ids import client_of

    with client_of(api_url, run_id) as (client, found):
        groups = client.samples(found, step=step, limit=1)
        if not groups:
            raise NotFoundError(f"Run {found} has no samples{'' if step is None else f' of step {step}'}.")
        group = groups[0]
        index = _response(group, response)
        readings = client.read_sample(
            found,
            step=group["step"],
            group_id=group["group_id"],
            index=index,
            teachers=[_teacher(text, group, index) for text in teacher],
            version=version,
        )
    sample = next(item for item in group["samples"] if item["index"] == index)
    _show(readings, sample, teacher, as_json)


def _response(group: dict[str, Any], wanted: int | None) -> int:
    if not group.get("material"):
        raise ConflictError(
            f"The group of step {group['step']} was stored by a release that did not keep token ids.",
            remedy="Choose a newer step or run.",
        )
    known = [item["index"] for item in group["samples"]]
    if wanted is None:
        told = [item["index"] for item in group["material"]["responses"] if item["told"]]
        return int((told or known)[0])
    if wanted not in known:
        raise NotFoundError(
            f"The group of step {group['step']} has no response {wanted}.",
            remedy=f"Choose one of {', '.join(map(str, known))}.",
        )
    return wanted


def _teacher(text: str, group: dict[str, Any], index: int) -> dict[str, Any]:
    """The teacher as the API takes it."""
    found: dict[str, Any] = {"demonstrations": [], "reference": False, "feedback": False}
    for part in text.split(","):
        if part.isascii() and part.isdigit():
            found["demonstrations"].append(int(part))
        elif part in ("reference", "feedback"):
            found[part] = True
        elif part == "training":
            told = next(item["told"] for item in group["material"]["responses"] if item["index"] == index)
            if not told:
                raise ConfigurationError(
                    f"Training's teacher did not read response {index}.",
                    remedy="Choose another --response, or name what the teacher is to read.",
                    field="teacher",
                )
            found["demonstrations"] += told["demonstrations"]
            found |= {name: found[name] or told[name] for name in ("reference", "feedback")}
        else:
            raise ConfigurationError(
                f"--teacher {text}: {part!r} is nothing that a teacher can read.",
                remedy="Give numbers of responses, reference, feedback or training, separated by commas.",
                field="teacher",
            )
    return found


def _show(readings: TeacherReadings, sample: dict[str, Any], names: list[str], as_json: bool) -> None:
    from turnout.cli import output
    from turnout.cli.terminal import say

    if as_json:
        output.show(readings, as_json, "")
        return
    gaps = [
        [value - own for value, own in zip(one.logprobs, readings.policy, strict=True)] for one in readings.teachers
    ]
    rows = [
        [
            str(i),
            f'"{token}"',
            f"{readings.policy[i]:.3f}",
            *(f"{gap[i]:+.3f}" for gap in gaps),
        ]
        for i, token in enumerate(sample["tokens"])
    ]
    output.print_table(["token", "text", "policy", *names], rows)
    say(f"\nResponse {sample['index']}, read by {readings.weights}. Log-probs of the policy and gaps to it in nats.")
    for name, gap in zip(names, gaps, strict=True):
        say(f"{name}: {_summary(gap)}")


def _summary(gap: list[float]) -> str:
    total = sum(map(abs, gap))
    if not total:
        return "no gap at all"
    masses = [sum(abs(value) for i, value in enumerate(gap) if BINS * i // len(gap) == part) for part in range(BINS)]
    top = masses.index(max(masses))
    where = f"{10 * top} to {10 * top + 10}% of the response"
    return f"mean gap {sum(gap) / len(gap):+.3f}; {masses[top] / total:.0%} of its size at {where}"
