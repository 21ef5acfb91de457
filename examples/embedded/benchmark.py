"""The embedded benchmark: recall the weights of a few goods and add them up.

A question names two to four of 160 goods; each good has one fixed weight, 10 to 24 tonnes, which the question does not
mention. The policy has to know it:

    Total tonnes of coal, linen, salt?
    <reasoning>coal=24 linen=22 salt=11 24+22=46 46+11=57</reasoning><answer>57</answer>

Some goods are asked for much more often than others (a long tail), so a run keeps learning for a long time. Weights and
totals always have two digits, so that the tokenizer can have one token per number and stay unambiguous.

How long a reply is, is up to the policy. The sums may be left out, and a weight may be thought over:

    <reasoning>coal=19 linen=22 salt=11; wait, coal=24</reasoning><answer>57</answer>

The rule for reward 1 (else 0): the reply is exactly `<reasoning>...</reasoning><answer>N</answer>`, N is the total,
and the last claim `good=weight` about each good of `tests` is right. So a list of all weights earns nothing, and
neither does a right total from wrong weights, which would be a bad demonstration. The feedback on a well-formed reply
names the first wrong weight: "linen should be 22".

`python examples/embedded/benchmark.py` writes data/{train,validation,test}.jsonl. The splits share no composition (set
of goods): a hash of the composition decides where it belongs. Each line has `id`, `kind` ("recall"), `system`,
`prompt`, `answer` (the total), `tests` (JSON: {"facts": {"coal": 24, ...}}).

Only `random.Random.random` is drawn from: Python guarantees its sequence in every version.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

Split = Literal["train", "validation", "test"]
T = TypeVar("T")

_GOODS = """
coal timber grain salt cotton sugar copper wool iron paper cement barley rubber glass flour steel
tobacco linen gravel apples tea zinc leather honey bricks cocoa silk lumber potatoes tin rice marble
butter lead coffee hemp wheat slate cheese nickel soap peat oats vinegar clay maize carpets quartz
onions jute pepper granite wine brass lentils tar melons chalk furs sulphur dates graphite ink walnuts
cobalt olives velvet candles lemons bauxite yarn gypsum plums pottery cider amber mica nutmeg figs ochre
almonds bamboo bananas carrots asphalt cloth nails boots tiles eggs milk sand rope hay beans hops
grapes cherries bottles bronze canvas cork crates cables bells blankets buttons paint garlic ginger hides hats
straw syrup tallow peaches pears raisins shoes saddles mirrors mustard millet lanterns kettles lace lard limes
feathers felt flax fennel enamel cloves cumin currants coins chestnuts baskets apricots anvils axles buckets gloves
pewter pillows quinces radishes rugs saffron sesame shale sherry thyme turnips treacle wicker yams jam kelp
"""
GOODS: Final = tuple(_GOODS.split())
"""The goods, from the most to the least frequent."""

SYSTEM: Final = "Recall each weight, then add."
LIGHTEST, HEAVIEST = 10, 24
TAIL_EXPONENT, TAIL_OFFSET = 0.7, 3
"""The good at rank r (from 0) is drawn with weight 1 / (r + TAIL_OFFSET) ** TAIL_EXPONENT."""
NUM_GOODS_SHARES: Final[dict[int, float]] = {2: 0.4, 3: 0.4, 4: 0.2}
"""How many goods a question names, and how often."""
NUM_QUESTIONS: Final[dict[Split, int]] = {"train": 2560, "validation": 256, "test": 256}
SEEDS: Final[dict[Split, int]] = {"train": 71, "validation": 72, "test": 73}

_REPLY = re.compile(r"<reasoning>(.*?)</reasoning><answer>(\d+)</answer>", re.DOTALL)


def stable_hash(text: str) -> int:
    """A number that depends on `text` alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


WEIGHT: Final[dict[str, int]] = {
    good: LIGHTEST + stable_hash(f"weight of {good}") % (HEAVIEST - LIGHTEST + 1) for good in GOODS
}
"""Tonnes of each good: the facts of this benchmark."""
_POPULARITY: Final = [1 / (rank + TAIL_OFFSET) ** TAIL_EXPONENT for rank in range(len(GOODS))]


@dataclass(frozen=True)
class Question:
    """One question; `goods` are named in this order and no good twice."""

    goods: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return f"Total tonnes of {', '.join(self.goods)}?"

    @property
    def total(self) -> int:
        return sum(WEIGHT[good] for good in self.goods)

    @property
    def composition(self) -> str:
        """The goods, independent of their order: questions with equal compositions are the same task."""
        return " ".join(sorted(self.goods))

    @property
    def split(self) -> Split:
        bucket = stable_hash(f"split of {self.composition}") % 10
        return "test" if bucket == 0 else "validation" if bucket == 1 else "train"

    def row(self) -> dict[str, str]:
        """The question as a line of the data files."""
        return {
            "id": f"recall-{stable_hash(self.composition):016x}",
            "kind": "recall",
            "system": SYSTEM,
            "prompt": self.prompt,
            "answer": str(self.total),
            "tests": json.dumps({"facts": {good: WEIGHT[good] for good in self.goods}}),
        }


def pick(rng: random.Random, items: Sequence[T], weights: Sequence[float]) -> T:
    """One of `items`, with probability proportional to its weight."""
    point = rng.random() * sum(weights)
    for item, weight in zip(items, weights, strict=True):
        point -= weight
        if point < 0:
            return item
    return items[-1]


def draw(rng: random.Random) -> Question:
    """A question of any split."""
    num_goods = pick(rng, list(NUM_GOODS_SHARES), list(NUM_GOODS_SHARES.values()))
    goods: list[str] = []
    while len(goods) < num_goods:
        good = pick(rng, GOODS, _POPULARITY)
        if good not in goods:
            goods.append(good)
    return Question(tuple(goods))


def draw_from(split: Split, rng: random.Random) -> Iterator[Question]:
    """Endless questions of `split`; compositions may repeat."""
    while True:
        question = draw(rng)
        if question.split == split:
            yield question


def questions(split: Split) -> list[Question]:
    """The published questions of `split`; no composition twice."""
    chosen: dict[str, Question] = {}
    for question in draw_from(split, random.Random(SEEDS[split])):
        chosen.setdefault(question.composition, question)
        if len(chosen) == NUM_QUESTIONS[split]:
            break
    return list(chosen.values())


def is_right(question: Question, reply: str) -> bool:
    """Whether `reply` (without the end-of-sequence token) earns the reward."""
    match = _REPLY.fullmatch(reply)
    return match is not None and int(match[2]) == question.total and first_mistake(question, match[1]) is None


def first_mistake(question: Question, reasoning: str) -> str | None:
    """The feedback on the first good whose last weight is missing or wrong, None if every weight is right."""
    for good in question.goods:
        claims = re.findall(rf"\b{good}=(\d+)", reasoning)
        if not claims or int(claims[-1]) != WEIGHT[good]:
            return f"{good} should be {WEIGHT[good]}"
    return None


def write(folder: Path) -> None:
    """Writes the three files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in NUM_QUESTIONS:
        lines = [json.dumps(question.row()) + "\n" for question in questions(split)]
        (folder / f"{split}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    write(Path(__file__).parent / "data")
