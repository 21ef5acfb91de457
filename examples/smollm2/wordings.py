"""How the teacher's accuracy and style depend on the texts around the demonstration, for the untrained model.

    python examples/smollm2/wordings.py models/smollm2-135m

For each wording, the model answers the validation questions to which one of its own responses was correct, with this
response as the demonstration. Printed: the share of correct responses, and of responses with a word like "correct",
"answer" or "solution", which the questions do not have. About five minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.contracts.objectives.settings import ObjectiveSettings
from services.contracts.teacher_text import PAPER, Wording, teacher_text

QUESTIONS = Path(__file__).parent / "lenient/validation.jsonl"
STYLE = re.compile(r"\b(correct|answer|solution|solve|original)", re.IGNORECASE)
WORDINGS = {
    "the paper's": PAPER,
    "without the closing": Wording.of(ObjectiveSettings(teacher_closing="")),
    "Hint:": Wording.of(ObjectiveSettings(teacher_solution_heading="Hint:", teacher_closing="")),
    "the question repeated": Wording.of(ObjectiveSettings(teacher_solution_heading="", teacher_closing="{question}")),
}
MAX_TOKENS, TEMPERATURE, BATCH = 24, 0.7, 62


class Sampler:
    """Samples responses as the run files of this folder do."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def respond(self, rows: list[dict[str, Any]], prompts: list[str]) -> list[str]:
        """One response to each prompt, under the system message of its row."""
        texts = [self._rendered(row["system"], prompt) for row, prompt in zip(rows, prompts, strict=True)]
        responses: list[str] = []
        for start in range(0, len(texts), BATCH):
            batch = self.tokenizer(texts[start : start + BATCH], return_tensors="pt", padding=True)
            with torch.no_grad():
                ids = self.model.generate(
                    **batch, max_new_tokens=MAX_TOKENS, do_sample=True, temperature=TEMPERATURE, top_p=1.0, top_k=0
                )
            new = ids[:, batch["input_ids"].shape[1] :]
            responses += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return responses

    def _rendered(self, system: str, prompt: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        rendered: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return rendered


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Folder that examples/make_smollm2.py has written.")
    parser.add_argument("--samples", type=int, default=2, help="Responses to each of the teacher's prompts.")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sampler = Sampler(options.model)
    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    alone = [sampler.respond(rows, [row["prompt"] for row in rows]) for _ in range(4)]
    found = [
        (row, next((text for text in texts if is_correct(row, text)), None))
        for row, *texts in zip(rows, *alone, strict=True)
    ]
    known = [(row, solution) for row, solution in found if solution is not None]
    asked = [row for row, _ in known]
    print(f"{len(known)} of {len(rows)} questions have a correct response among 4\n")
    print("| wording | correct | style |\n|---|---|---|")
    # Again, because the responses that the questions were chosen by are better than others.
    show("no teacher's prompt", asked, [sampler.respond(asked, [row["prompt"] for row in asked]) for _ in range(4)])
    for name, wording in WORDINGS.items():
        prompts = [teacher_text(row["prompt"], solution, None, wording=wording) for row, solution in known]
        show(name, asked, [sampler.respond(asked, prompts) for _ in range(options.samples)])


def is_correct(row: dict[str, Any], text: str) -> bool:
    """Whether the lenient reward accepts the response."""
    return re.search(row["answer"], text) is not None


def show(name: str, rows: list[dict[str, Any]], samples: list[list[str]]) -> None:
    """Print a row of the table."""
    pairs = [(row, text) for texts in samples for row, text in zip(rows, texts, strict=True)]
    correct = fmean(is_correct(row, text) for row, text in pairs)
    style = fmean(STYLE.search(text) is not None for _, text in pairs)
    print(f"| {name} | {correct:.1%} | {style:.1%} |", flush=True)


if __name__ == "__main__":
    main()
