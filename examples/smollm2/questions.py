"""Questions with one-word answers that SmolLM2-135M-Instruct half knows, from the tables of facts in `facts/`.

    python examples/smollm2/questions.py

writes `lenient/` and `strict/`, each with train.jsonl, validation.jsonl and test.jsonl: the same bytes every time. Both
ask the same questions. The lenient reward finds the answer anywhere in the response, as a whole word; the strict one
takes a single line of at most twelve words that ends with the answer, such as "The capital of France is Paris."

A row of a table is a fact. A hash of the fact decides its split, so that no question of one split gives away the
answer to one of another: whatever is asked about France is asked in one split only.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Split = Literal["train", "validation", "test"]
Reward = Literal["lenient", "strict"]

FOLDER: Final = Path(__file__).parent
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
REWARDS: Final[tuple[Reward, ...]] = ("lenient", "strict")
SYSTEM: Final = "Answer with one short sentence."
MOST_WORDS: Final = 12
"""Words of a response that the strict reward takes, with the answer as the last one."""


@dataclass(frozen=True)
class Topic:
    """One way to ask about a table: the wording, and the columns that are named and asked for."""

    table: str
    answer: str
    wording: str
    """With the column's name in braces where a row's value goes."""


TOPICS: Final[dict[str, Topic]] = {
    "capital": Topic("countries", "capital", "What is the capital of {country}?"),
    "country": Topic("countries", "country", "Which country has the capital {capital}?"),
    "continent": Topic("countries", "continent", "On which continent is {country}?"),
    "language": Topic("countries", "language", "Which language do most people in {country} speak?"),
    "currency": Topic("countries", "currency", "What is the currency of {country}?"),
    "symbol": Topic("elements", "symbol", "What is the chemical symbol of {element}?"),
    "class": Topic("animals", "class", "To which class of animals does the {animal} belong?"),
    "past": Topic("verbs", "past", 'What is the past tense of the verb "{verb}"?'),
    "opposite": Topic("opposites", "opposite", 'What is the opposite of "{word}"?'),
    "landmark": Topic("landmarks", "country", "In which country is {landmark}?"),
}


@dataclass(frozen=True)
class Question:
    """One question with every answer that is right, the usual one first."""

    topic: str
    fact: str
    """Names the row that the question is about: the table and the row's first column."""
    prompt: str
    answers: tuple[str, ...]

    @property
    def split(self) -> Split:
        """70% of the facts are for training, 15% each for validation and test."""
        share = int(hashlib.sha256(self.fact.encode()).hexdigest(), 16) % 20
        return "train" if share < 14 else "validation" if share < 17 else "test"

    def row(self, reward: Reward) -> dict[str, str | dict[str, str | bool]]:
        """The question as a line of a data file."""
        words = "|".join(re.escape(answer) for answer in self.answers)
        strict = rf"\s*(?:\S+ ){{0,{MOST_WORDS - 1}}}[\"']?(?:{words})[\"']?\.?[\"']?\s*"
        return {
            "id": f"{self.topic}: {self.fact.partition(': ')[2]}",
            "kind": "regex",
            "system": SYSTEM,
            "prompt": self.prompt,
            "answer": strict if reward == "strict" else rf"\b(?:{words})\b",
            "tests": {"full": reward == "strict", "ignore_case": self.topic != "symbol", "where": "reply"},
        }


def questions() -> Iterator[Question]:
    """All questions, topic by topic, in the order of the tables."""
    for name, topic in TOPICS.items():
        with (FOLDER / "facts" / f"{topic.table}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                question = ask(name, topic, row)
                if question is not None:
                    yield question


def ask(name: str, topic: Topic, row: dict[str, str]) -> Question | None:
    """The question about this row, or None if a cell is empty or the answer is not one word that is not given away."""
    shown = {column: cell.split("|")[0] for column, cell in row.items()}
    answers = tuple(row[topic.answer].split("|"))
    prompt = topic.wording.format(**shown)
    asked = re.findall(r"{(\w+)}", topic.wording)
    if not all(shown[column] for column in (*asked, topic.answer)) or any(" " in answer for answer in answers):
        return None
    if any(answer.lower() in shown[column].lower().split() for column in asked for answer in answers):
        return None
    return Question(name, f"{topic.table}: {next(iter(shown.values()))}", prompt, answers)


def text(split: Split, reward: Reward) -> str:
    """The data file of one split and reward."""
    rows = (question.row(reward) for question in questions() if question.split == split)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    for reward in REWARDS:
        (FOLDER / reward).mkdir(exist_ok=True)
        for split in SPLITS:
            (FOLDER / reward / f"{split}.jsonl").write_text(text(split, reward), encoding="utf-8")


if __name__ == "__main__":
    main()
