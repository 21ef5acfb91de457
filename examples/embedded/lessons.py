"""What the embedded policy is taught before any reinforcement learning: examples of imperfect knowledge.

A lesson is a prompt and a reply. Three kinds:
- plain: the reply recalls weights like a learner with limited knowledge of each good (`KNOWLEDGE`); if it does not know
  a weight, it holds one fixed wrong belief. So the policy's mistakes are about single facts, and it sometimes gives the
  right weight.
- solution: the prompt shows a solution whose weights are mostly NOT the true ones; the reply uses those. So the policy
  learns to read a demonstration instead of recalling: it becomes a teacher that sees what a sibling found out.
- feedback: the prompt gives one weight, and the reply uses it.
The reply names the goods in any order, so one question has several right replies.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from examples.embedded.benchmark import GOODS, HEAVIEST, LIGHTEST, WEIGHT, Question, Split, draw_from, stable_hash
from examples.embedded.vocabulary import END, render, teacher_content

Kind = Literal["plain", "solution", "feedback"]
KINDS: Final[tuple[Kind, ...]] = ("plain", "solution", "solution", "feedback", "solution", "solution")
"""The kinds of consecutive batches, in a cycle."""

KNOWLEDGE_LEVELS: Final = (0.2, 0.45, 0.7, 0.95)


def _beliefs() -> dict[str, int]:
    span = HEAVIEST - LIGHTEST + 1
    return {
        good: LIGHTEST + (WEIGHT[good] - LIGHTEST + 1 + stable_hash(f"belief of {good}") % (span - 1)) % span
        for good in GOODS
    }


def _knowledge() -> dict[str, float]:
    """Each group of four goods of similar popularity has all four levels, in a hashed order."""
    known: dict[str, float] = {}
    for start in range(0, len(GOODS), len(KNOWLEDGE_LEVELS)):
        group = sorted(GOODS[start : start + len(KNOWLEDGE_LEVELS)], key=lambda good: stable_hash(f"known {good}"))
        known.update(zip(group, KNOWLEDGE_LEVELS, strict=True))
    return known


BELIEF: Final = _beliefs()
"""The wrong weight (tonnes) of each good that is used if the right one is not known."""
KNOWLEDGE: Final = _knowledge()
"""The probability that a plain reply has the right weight of a good."""


@dataclass(frozen=True)
class Lesson:
    """A rendered prompt, and the reply with its end token."""

    prompt: str
    reply: str


def recall(good: str, rng: random.Random) -> int:
    """A weight (tonnes) as the imperfect learner remembers it."""
    return WEIGHT[good] if rng.random() < KNOWLEDGE[good] else BELIEF[good]


def shuffled(goods: tuple[str, ...], rng: random.Random, share: float = 0.5) -> list[str]:
    """The goods, in another order in `share` of the cases."""
    return sorted(goods, key=lambda _: rng.random()) if rng.random() < share else list(goods)


def reply(order: list[str], weights: dict[str, int]) -> str:
    """The reply that recalls `weights` in this order and adds them up."""
    steps = [f"{good}={weights[good]}" for good in order]
    total = weights[order[0]]
    for good in order[1:]:
        steps.append(f"{total}+{weights[good]}={total + weights[good]}")
        total += weights[good]
    return f"<reasoning>{' '.join(steps)}</reasoning><answer>{total}</answer>"


def _claimed_weight(good: str, rng: random.Random) -> int:
    point = rng.random()
    if point < 0.7:
        return LIGHTEST + int(rng.random() * (HEAVIEST - LIGHTEST + 1))
    return WEIGHT[good] if point < 0.85 else BELIEF[good]


def _lesson(kind: Kind, question: Question, rng: random.Random) -> Lesson:
    weights = {good: recall(good, rng) for good in question.goods}
    if kind == "plain":
        user = question.prompt
        answer = reply(shuffled(question.goods, rng), weights)
    elif kind == "solution":
        weights = {good: _claimed_weight(good, rng) for good in question.goods}
        seen_order = shuffled(question.goods, rng)
        told = question.goods[int(rng.random() * len(question.goods))]
        feedback = f"{told} should be {weights[told]}" if rng.random() < 0.2 else None
        user = teacher_content(question.prompt, reply(seen_order, weights), feedback)
        answer = reply(seen_order if rng.random() < 0.3 else shuffled(question.goods, rng), weights)
    else:
        told = question.goods[int(rng.random() * len(question.goods))]
        weights[told] = _claimed_weight(told, rng)
        user = teacher_content(question.prompt, None, f"{told} should be {weights[told]}")
        answer = reply(shuffled(question.goods, rng), weights)
    return Lesson(render(user), answer + END)


def batches(split: Split, size: int, seed: int) -> Iterator[list[Lesson]]:
    """Endless batches of `size` lessons about questions of `split`, cycling through the kinds."""
    rng = random.Random(seed)
    source = draw_from(split, rng)
    while True:
        for kind in KINDS:
            yield [_lesson(kind, next(source), rng) for _ in range(size)]
