"""Measures a policy on the embedded benchmark, with only transformers.

`python -m examples.embedded.measure [--policy FOLDER] [--split validation]` prints, as JSON:
- accuracy at temperature 0.6 with top-p 0.95, and at temperature 1: the share of right replies;
- mixed: the share of questions with both right and wrong replies among 8 at temperature 1, from which there is
  something to learn;
- taught by a solution, by feedback: the share of right replies at temperature 1 to the teacher's prompt with a right
  solution, or with the feedback on a sampled reply: what a self-teacher with these weights knows;
- how replies look at temperature 1, alone and with a solution in the prompt: their tokens, the share that shows sums or
  has second thoughts, and the share that is right among those that do and do not.
"""

import argparse
import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from examples.embedded.benchmark import NUM_QUESTIONS, WEIGHT, Question, first_mistake, is_right, questions
from examples.embedded.lessons import reply, shuffled
from examples.embedded.vocabulary import SECOND_THOUGHT, render, teacher_content

POLICY: Final = Path(__file__).parent / "policy"
SAMPLES: Final = 8
MAX_REPLY_TOKENS: Final = 64


class Examinee:
    """A policy with its tokenizer, asked in batches on one thread."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def replies(self, contents: list[str], temperature: float = 1.0, top_p: float = 1.0, seed: int = 5) -> list[str]:
        """One sampled reply (text without the end token) to each user message."""
        torch.manual_seed(seed)
        encoded = self.tokenizer([render(content) for content in contents], return_tensors="pt", padding=True)
        ids = self.model.generate(
            **encoded,
            max_new_tokens=MAX_REPLY_TOKENS,
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
        )
        texts: list[str] = self.tokenizer.batch_decode(
            ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return texts


def share_right(asked: list[Question], replies: list[str]) -> float:
    """The share of `replies` that answer their question correctly."""
    return round(sum(map(is_right, asked, replies)) / len(asked), 4)


def habits(examinee: Examinee, asked: list[Question], replies: list[str]) -> dict[str, float]:
    """How `replies` look, and what it is worth."""
    right = [is_right(question, text) for question, text in zip(asked, replies, strict=True)]
    found = {"tokens": fmean(len(examinee.tokenizer.encode(text)) + 1 for text in replies)}
    for name, sign in (("sums", "+"), ("second_thoughts", SECOND_THOUGHT)):
        having = [sign in text for text in replies]
        found[f"with_{name}"] = fmean(having)
        for have in (True, False):
            those = [right[index] for index, has in enumerate(having) if has == have]
            found[f"right_{'with' if have else 'without'}_{name}"] = fmean(those) if those else 0.0
    return {name: round(value, 4) for name, value in found.items()}


def plain(examinee: Examinee, asked: list[Question]) -> dict[str, Any]:
    """Accuracy without help, and the share of questions with right and wrong replies."""
    repeated = [question for question in asked for _ in range(SAMPLES)]
    contents = [question.prompt for question in repeated]
    careful = examinee.replies(contents, temperature=0.6, top_p=0.95)
    free = examinee.replies(contents)
    right = [is_right(question, text) for question, text in zip(repeated, free, strict=True)]
    counts = [sum(right[start : start + SAMPLES]) for start in range(0, len(right), SAMPLES)]
    return {
        "accuracy_at_0.6": share_right(repeated, careful),
        "accuracy_at_1.0": share_right(repeated, free),
        "mixed": round(sum(0 < count < SAMPLES for count in counts) / len(counts), 4),
        "alone": habits(examinee, repeated, free),
    }


def taught(examinee: Examinee, asked: list[Question]) -> dict[str, Any]:
    """Accuracy and habits on the teacher's prompt."""
    rng = random.Random(6)
    solved = [
        teacher_content(question.prompt, reply(shuffled(question.goods, rng), WEIGHT), None) for question in asked
    ]
    mistakes = [
        (question, mistake)
        for question, text in zip(asked, examinee.replies([question.prompt for question in asked]), strict=True)
        if (mistake := first_mistake(question, text)) is not None
    ]
    told = [teacher_content(question.prompt, None, mistake) for question, mistake in mistakes]
    after_solution = examinee.replies(solved)
    return {
        "taught_by_solution": share_right(asked, after_solution),
        "taught_by_feedback": share_right([question for question, _ in mistakes], examinee.replies(told)),
        "with_a_solution": habits(examinee, asked, after_solution),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measures a policy on the embedded benchmark.")
    parser.add_argument("--policy", type=Path, default=POLICY)
    parser.add_argument("--split", choices=list(NUM_QUESTIONS), default="validation")
    arguments = parser.parse_args()
    examinee, asked = Examinee(arguments.policy), questions(arguments.split)
    print(json.dumps({**plain(examinee, asked), **taught(examinee, asked)}, indent=2))


if __name__ == "__main__":
    main()
