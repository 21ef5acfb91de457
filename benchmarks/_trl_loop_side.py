"""TRL's half of `trl_end_to_end`: whole training loops with generation by transformers, in TRL's own environment.

python -m benchmarks._trl_loop_side

Reads an order (JSON) a line and answers `DONE <JSON>`. Of Turnout it imports only what needs no more than Python
and TRL.
"""

import json
import re
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from benchmarks._trl_rule import judge
from benchmarks._trl_side import SDPO_SETTINGS, settings

TEMPLATES = {
    "reprompt_template": "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.",
    "solution_template": "\n\nCorrect solution:\n\n{successful_previous_attempt}",
}
"""Turnout's wording of the teacher's prompt."""


def read_rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def messages(row):
    return [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["prompt"]}]


class Questions:
    """The rows of a file as TRL's dataset, and their judge."""

    def __init__(self, path):
        self.rows = read_rows(path)
        self.rewards = []
        self.num_tokens = []

    def dataset(self):
        return Dataset.from_list([{"prompt": messages(row), "place": i} for i, row in enumerate(self.rows)])

    def reward(self, completions, completion_ids, place, **_):
        texts = [completion[0]["content"] for completion in completions]
        found = [judge(self.rows[i], text) for i, text in zip(place, texts, strict=True)]
        self.rewards.append(sum(found) / len(found))
        self.num_tokens.append(sum(map(len, completion_ids)) / len(completion_ids))
        return found


def accuracy(trainer, order):
    """avg@k: the share of right answers to held-out questions, sampled as in training."""
    rows, k = read_rows(order["held_out"])[: order["max_questions"]], order["num_samples"]
    tokenizer = trainer.processing_class
    inputs = tokenizer.apply_chat_template(
        [messages(row) for row in rows],
        add_generation_prompt=True,
        padding=True,
        padding_side="left",
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        found = trainer.model.generate(**inputs, generation_config=trainer.generation_config, num_return_sequences=k)
    texts = tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(judge(rows[i // k], text) for i, text in enumerate(texts)) / len(texts)


class Clock(TrainerCallback):
    """Wall seconds from the end of one step to the end of the next, and of generating in it. What `examine` finds
    after every so many steps does not count."""

    def __init__(self, examine, every):
        self.seconds, self.generating, self.accuracy = [], [], {}
        self.examine, self.every = examine, every
        self.last, self.generated = time.perf_counter(), 0.0

    def time(self, generate):
        def timed(*arguments, **options):
            started = time.perf_counter()
            found = generate(*arguments, **options)
            self.generated += time.perf_counter() - started
            return found

        return timed

    def on_step_end(self, args, state, control, **_):
        self.seconds.append(time.perf_counter() - self.last)
        self.generating.append(self.generated)
        if self.every and state.global_step % self.every == 0:
            self.accuracy[state.global_step] = self.examine()
        self.last, self.generated = time.perf_counter(), 0.0


def make(order, questions, folder):
    """The trainer that an order describes."""
    num_rollouts = order["prompts"] * order["group_size"]
    microbatch = min(order["microbatch"], num_rollouts)
    values = settings(num_rollouts, order["group_size"], order["max_tokens"], microbatch, folder) | {
        "max_steps": order["steps"],
        "learning_rate": order["learning_rate"],
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": order["warmup_steps"],
        "temperature": order["temperature"],
        "seed": order["seed"],
        "bf16": order["dtype"] == "bfloat16",
        "model_init_kwargs": {"dtype": order["weights"], "attn_implementation": order["attention"]},
    }
    if order["kind"] == "grpo":
        arguments, kind = GRPOConfig(**values, **order["options"], loss_type="dapo"), GRPOTrainer
    else:
        arguments, kind = SDPOConfig(**values, **SDPO_SETTINGS, **TEMPLATES), SDPOTrainer
    return kind(model=order["policy"], reward_funcs=questions.reward, args=arguments, train_dataset=questions.dataset())


def peak_bytes():
    """Most memory that this process has had at a time."""
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(found.group(1)) * 1024


def run(order):
    """Train, and say how long each step took, and what the policy then knew."""
    torch.set_num_threads(order["threads"])
    questions = Questions(order["questions"])
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder:
        trainer = make(order, questions, folder)
        clock = Clock(lambda: accuracy(trainer, order), order["every_steps"])
        if clock.every:
            clock.accuracy[0] = clock.examine()
        trainer.model.generate = clock.time(trainer.model.generate)
        trainer.add_callback(clock)
        clock.last = time.perf_counter()
        trainer.train()
    return {
        "seconds": clock.seconds,
        "generating": clock.generating,
        "accuracy": clock.accuracy,
        "rewards": questions.rewards,
        "num_tokens": questions.num_tokens,
        "peak_bytes": peak_bytes(),
    }


def main():
    print("READY", file=sys.stderr, flush=True)
    for line in sys.stdin:
        print("DONE", json.dumps(run(json.loads(line))), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
