"""What the embedded policy is taught before any reinforcement learning: examples of imperfect knowledge.

A lesson is a prompt and a reply. Three kinds:
- plain: the reply recalls weights like a learner with limited knowledge of each good (`KNOWLEDGE`); if it does not know
  a weight, it holds one fixed wrong belief. So the policy's mistakes are about single facts, and it sometimes gives the
  right weight. Now and then it thinks a weight over, which often finds the right one: longer thinking pays.
- solution: the prompt shows a solution whose weights are mostly NOT the true ones. The reply trusts those, but not for
  each good alike (`TRUST`), else it recalls. So the policy learns to read a demonstration: it becomes a teacher that
  sees what a sibling found out, and that is unsure if this contradicts its memory. Who has the solution at hand needs
  neither second thoughts nor, often, sums: it copies the total.
- feedback: the prompt gives one weight, which the reply trusts in the same way.
The reply names the goods in any order, so one question has several right replies.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from types import MappingProxyType
from typing import Final, Literal

from examples.embedded.benchmark import GOODS, HEAVIEST, LIGHTEST, WEIGHT, Question, Split, draw_from, stable_hash
from examples.embedded.vocabulary import END, SECOND_THOUGHT, render, teacher_content

Kind = Literal["plain", "solution", "feedback"]
KINDS: Final[tuple[Kind, ...]] = ("plain", "solution", "solution", "feedback", "solution", "solution")
"""The kinds of consecutive batches, in a cycle."""

KNOWLEDGE_LEVELS: Final = (0.25, 0.5, 0.75, 0.95)
TRUST_LEVELS: Final = (0.5, 0.7, 0.85, 0.95)
SECOND_THOUGHTS: Final = 0.25
"""How often a plain reply thinks a weight over."""
SECOND_THOUGHT_HELPS: Final = 0.5
"""How often that gives the right weight; otherwise it confirms the first one."""
OTHER_ORDER: Final = 0.2
"""How often a reply names the goods in another order."""
SUMS_SHOWN: Final = 0.8
SUMS_SHOWN_WITH_SOLUTION: Final = 0.4

_NONE: Final[Mapping[str, int]] = MappingProxyType({})


def _beliefs() -> dict[str, int]:
    span = HEAVIEST - LIGHTEST + 1
    return {
        good: LIGHTEST + (WEIGHT[good] - LIGHTEST + 1 + stable_hash(f"belief of {good}") % (span - 1)) % span
        for good in GOODS
    }


def _levels(what: str, levels: tuple[float, ...]) -> dict[str, float]:
    """Each group of goods of similar popularity has all levels, in a hashed order."""
    found: dict[str, float] = {}
    for start in range(0, len(GOODS), len(levels)):
        group = sorted(GOODS[start : start + len(levels)], key=lambda good: stable_hash(f"{what} {good}"))
        found.update(zip(group, levels, strict=True))
    return found


BELIEF: Final = _beliefs()
"""The wrong weight (tonnes) of each good that is used if the right one is not known."""
KNOWLEDGE: Final = _levels("known", KNOWLEDGE_LEVELS)
"""The probability that the first thought of a plain reply has the right weight of a good."""
TRUST: Final = _levels("trusted", TRUST_LEVELS)
"""The probability that a weight in the prompt is used rather than the remembered one."""


@dataclass(frozen=True)
class Lesson:
    """A rendered prompt, and the reply with its end token."""

    prompt: str
    reply: str


@dataclass(frozen=True)
class Thoughts:
    """What a reply says: the weights in tonnes, and what was said first of those that were thought over."""

    weights: dict[str, int]
    first: dict[str, int]


def recall(good: str, rng: random.Random) -> int:
    """A weight (tonnes) as the imperfect learner remembers it."""
    return WEIGHT[good] if rng.random() < KNOWLEDGE[good] else BELIEF[good]


def think(goods: tuple[str, ...], rng: random.Random) -> Thoughts:
    """What the imperfect learner says of `goods` without help."""
    weights = {good: recall(good, rng) for good in goods}
    first = {good: weights[good] for good in goods if rng.random() < SECOND_THOUGHTS}
    weights |= {good: WEIGHT[good] for good in first if rng.random() < SECOND_THOUGHT_HELPS}
    return Thoughts(weights, first)


def shuffled(goods: tuple[str, ...], rng: random.Random) -> list[str]:
    """The goods, now and then in another order."""
    return sorted(goods, key=lambda _: rng.random()) if rng.random() < OTHER_ORDER else list(goods)


def reply(
    order: list[str],
    weights: Mapping[str, int],
    *,
    first: Mapping[str, int] = _NONE,
    sums: bool = True,
    answer: int | None = None,
) -> str:
    """The reply that recalls `weights` in this order and adds them up.

    `first` has the first claims about goods that are thought over; `sums` shows the sums; `answer` is another total.
    """
    claims = " ".join(f"{good}={first.get(good, weights[good])}" for good in order)
    corrections = "".join(f"{SECOND_THOUGHT}{good}={weights[good]}" for good in order if good in first)
    steps = [claims + corrections]
    total = weights[order[0]]
    for good in order[1:]:
        if sums:
            steps.append(f"{total}+{weights[good]}={total + weights[good]}")
        total += weights[good]
    return f"<reasoning>{' '.join(steps)}</reasoning><answer>{total if answer is None else answer}</answer>"


def _unaided(order: list[str], thoughts: Thoughts, rng: random.Random) -> str:
    return reply(order, thoughts.weights, first=thoughts.first, sums=rng.random() < SUMS_SHOWN)


def _claimed_weight(good: str, rng: random.Random) -> int:
    point = rng.random()
    if point < 0.7:
        return LIGHTEST + int(rng.random() * (HEAVIEST - LIGHTEST + 1))
    return WEIGHT[good] if point < 0.85 else BELIEF[good]


def _taught(question: Question, rng: random.Random, doubts: bool) -> Lesson:
    """A lesson of kind solution; without doubts it shows plain solutions, and the reply trusts them."""
    shown = {good: _claimed_weight(good, rng) for good in question.goods}
    first = {good: _claimed_weight(good, rng) for good in question.goods if doubts and rng.random() < SECOND_THOUGHTS}
    seen_order = shuffled(question.goods, rng)
    told = question.goods[int(rng.random() * len(question.goods))]
    feedback = f"{told} should be {shown[told]}" if rng.random() < 0.2 else None
    user = teacher_content(question.prompt, _unaided(seen_order, Thoughts(shown, first), rng), feedback)
    order = seen_order if rng.random() < 0.3 else shuffled(question.goods, rng)
    weights = {
        good: recall(good, rng) if doubts and rng.random() > TRUST[good] else shown[good] for good in question.goods
    }
    sums = rng.random() < SUMS_SHOWN_WITH_SOLUTION
    answer = reply(order, weights, sums=sums, answer=None if sums else sum(shown.values()))
    return Lesson(render(user), answer + END)


def _lesson(kind: Kind, question: Question, rng: random.Random, doubts: bool) -> Lesson:
    if kind == "solution":
        return _taught(question, rng, doubts)
    thoughts = think(question.goods, rng)
    user = question.prompt
    if kind == "feedback":
        told = question.goods[int(rng.random() * len(question.goods))]
        claimed = _claimed_weight(told, rng)
        user = teacher_content(question.prompt, None, f"{told} should be {claimed}")
        if rng.random() < TRUST[told]:
            thoughts.weights[told] = claimed
            thoughts.first.pop(told, None)
    return Lesson(render(user), _unaided(shuffled(question.goods, rng), thoughts, rng) + END)


def batches(split: Split, size: int, seed: int, num_trusting: int = 0) -> Iterator[list[Lesson]]:
    """Endless batches of `size` lessons about questions of `split`, cycling through the kinds.

    The first `num_trusting` batches have no doubts about solutions: who doubts while learning to read never learns it.
    """
    rng = random.Random(seed)
    source = draw_from(split, rng)
    for number, kind in enumerate(cycle(KINDS)):
        yield [_lesson(kind, next(source), rng, number >= num_trusting) for _ in range(size)]
