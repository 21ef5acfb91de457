"""A report's samples: responses of a run, and which of their tokens self-distillation corrected.

How strongly a token is corrected is its distillation weight times its divergence: its term in the loss of SRPO (arXiv
2604.02288).
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from services.contracts.errors import TurnoutError
from services.contracts.events import SAMPLES_EVERY_STEPS, ReadingMaterial
from services.contracts.plain_text import in_line
from services.contracts.records import Run
from turnout.cli.views.tables import html_table, markdown_table
from turnout.client.client import Client

NUM_RESPONSES = 4
"""Responses in a report."""
TRIES = 4
"""Stored steps that are read to find one response; late in a run, most groups have nothing to correct."""
NUM_TOKENS = 5
"""Tokens in a response's table."""
MAX_TOKENS = 1000
"""Tokens of a response that are shown; more would make a file that browsers open slowly."""
STYLE = ".tokens span { white-space: pre-wrap; border-radius: 2px; }"
CAPTION = (
    "The first response routed to SDPO in the first group of a step, for steps spread over the run; nothing else was "
    "chosen. A token's correction is its distillation weight times the divergence between policy and teacher."
)
TOKEN_HEADER = ["token", "correction", "divergence, nats", "weight", "teacher entropy, nats"]
Table = list[list[str]]


class Response(msgspec.Struct, frozen=True):
    """What is needed of `events.Sample`, whose log-probs are null over REST if they are not finite."""

    index: int
    tokens: list[str]
    route: str
    correct: bool
    teacher_entropy: list[float] = []
    distillation_weight: list[float] = []
    divergence: list[float] = []


class Group(msgspec.Struct, frozen=True):
    """What is needed of `events.SamplesTaken`."""

    step: int
    question_id: str
    prompt: str
    answer: str
    samples: list[Response]
    material: ReadingMaterial | None = None


@dataclass(frozen=True, slots=True)
class Correction:
    """One response that the teacher corrected."""

    group: Group
    sample: Response

    @property
    def strengths(self) -> list[float]:
        """Of each token, >= 0."""
        sample = self.sample
        weights = sample.distillation_weight or [1.0] * len(sample.divergence)
        return [weight * divergence for weight, divergence in zip(weights, sample.divergence, strict=True)]

    @property
    def title(self) -> str:
        return f"Step {self.group.step}: {in_line(self.group.question_id)}"

    @property
    def texts(self) -> Table:
        """What was asked, what the teacher read, and the verdict."""
        rows = [["question", self.group.prompt], ["expected", self.group.answer]]
        rows += [["the teacher read", text] for text in self._demonstrations()]
        return [*rows, ["the response is", "correct" if self.sample.correct else "failed"]]

    @property
    def shown(self) -> list[str]:
        """The response's tokens. Of a long one, the first, and then what is left out."""
        tokens = self.sample.tokens
        left_out = f" … {len(tokens) - MAX_TOKENS} more tokens"
        return [*tokens[:MAX_TOKENS], left_out] if self.is_cut else tokens

    @property
    def is_cut(self) -> bool:
        return len(self.sample.tokens) > MAX_TOKENS

    @property
    def strongest(self) -> Table:
        """Header, then the most corrected tokens in their order in the response."""
        strengths = self.strengths
        places = sorted(range(len(strengths)), key=lambda place: -strengths[place])[:NUM_TOKENS]
        return [TOKEN_HEADER, *([_visible(self.sample.tokens[at]), *self.numbers(at)] for at in sorted(places))]

    def numbers(self, place: int) -> list[str]:
        """Of one token, in the order of `TOKEN_HEADER`."""
        sample = self.sample
        weight = f"{sample.distillation_weight[place]:.2f}" if sample.distillation_weight else "1"
        entropy = f"{sample.teacher_entropy[place]:.2f}" if sample.teacher_entropy else "-"
        return [f"{self.strengths[place]:.3f}", f"{sample.divergence[place]:.3f}", weight, entropy]

    def _demonstrations(self) -> list[str]:
        """The correct siblings in the teacher's prompt."""
        material = self.group.material
        if material is None:
            return []
        texts = {response.index: response.demonstration for response in material.responses}
        told = next((item.told for item in material.responses if item.index == self.sample.index), None)
        return [] if told is None else [texts[index] for index in told.demonstrations if index in texts]


def find(client: Client, run: Run) -> list[Correction]:
    """Up to `NUM_RESPONSES` corrected responses, evenly spread over the run's steps; none of objectives without a
    teacher. Raises `TurnoutError`."""
    found: list[Correction] = []
    for steps in _places(run.step):
        for step in steps:
            correction = _of_step(client, run.id, step)
            if correction is not None:
                found.append(correction)
                break
    return found


def _places(last: int) -> Iterator[list[int]]:
    """Stored steps to look at for each response, the first choice first."""
    stored = [1, *range(SAMPLES_EVERY_STEPS, last + 1, SAMPLES_EVERY_STEPS)] if last else []
    size = -(-len(stored) // NUM_RESPONSES)
    for start in range(0, len(stored), max(1, size)):
        yield stored[start : start + size][:TRIES]


def _of_step(client: Client, run_id: str, step: int) -> Correction | None:
    for item in client.samples(run_id, step=step, limit=1):
        try:
            group = msgspec.convert(item, Group)
        except msgspec.ValidationError as error:
            raise TurnoutError(f"The API's samples of step {step} are not readable: {error}.") from error
        for sample in group.samples:
            if sample.route == "sdpo" and sample.divergence:
                return Correction(group, sample)
    return None


def as_markdown(corrections: Sequence[Correction]) -> list[str]:
    """The section's parts; none without corrections."""
    if not corrections:
        return []
    parts = ["## What self-distillation corrected", CAPTION]
    for one in corrections:
        rows = [["", ""], *one.texts, ["response", "".join(map(_visible, one.shown))]]
        parts += [f"### {html.escape(one.title, quote=False)}", markdown_table(rows), markdown_table(one.strongest)]
    return parts


def as_html(corrections: Sequence[Correction]) -> list[str]:
    """The section's parts; none without corrections."""
    if not corrections:
        return []
    parts = ["<h2>What self-distillation corrected</h2>", f"<p>{CAPTION} Hover over a token for its numbers.</p>"]
    for one in corrections:
        parts += [f"<h3>{html.escape(one.title)}</h3>", html_table(one.texts)]
        parts += [f'<p class="tokens">{"".join(_coloured(one))}</p>', html_table(one.strongest, header=True)]
    return parts


def _coloured(one: Correction) -> Iterator[str]:
    """Tokens with a background as strong as their correction, relative to the response's strongest."""
    strengths = one.strengths
    strongest = max(strengths, default=0.0) or 1.0
    for place, token in enumerate(one.shown[:-1] if one.is_cut else one.shown):
        numbers = ", ".join(f"{name} {value}" for name, value in zip(TOKEN_HEADER[1:], one.numbers(place), strict=True))
        colour = f"background:rgba(230,120,0,{0.8 * max(0.0, strengths[place]) / strongest:.2f})"
        yield f'<span style="{colour}" title="{html.escape(numbers)}">{html.escape(_visible(token))}</span>'
    if one.is_cut:
        yield html.escape(one.shown[-1])


def _visible(token: str) -> str:
    return in_line(token.replace("\n", "⏎"))
