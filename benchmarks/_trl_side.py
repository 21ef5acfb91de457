"""TRL's half of `trl_compare`: runs in TRL's own environment, one trainer a process, and imports nothing of Turnout's.

python -m benchmarks._trl_side sdpo|grpo RECORDING POLICY MICROBATCH FOLDER

Reads a line for each optimizer step to make, and answers `STEP <wall seconds> <CPU seconds> <loss> <teacher
prompts>`. Timed is what the trainer does from `on_step_begin` to the end of its callbacks at `on_step_end`, less
`_prepare_inputs`, in which the recorded completions take the place of generation.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer
from trl.trainer.utils import pad


class Recording:
    """Groups by prompt text; a prompt comes as often in a row as its group has completions."""

    def __init__(self, path):
        self.groups = json.loads(Path(path).read_text())
        self.by_prompt = {group["prompt"]: group for group in self.groups}
        self.size = len(self.groups[0]["completions"])

    def take(self, prompts, name):
        """`name` of the rollout at each place of a generation batch."""
        return [self.by_prompt[prompt][name][place % self.size] for place, prompt in enumerate(prompts)]

    def prompt_ids(self, prompts):
        return [self.by_prompt[prompt]["prompt_ids"] for prompt in prompts]


class Clock(TrainerCallback):
    """Waits for the word before a step and tells its time after it."""

    def __init__(self):
        self.excluded = (0.0, 0.0)
        self.started = (0.0, 0.0)
        self.loss = 0.0

    @staticmethod
    def now():
        return time.perf_counter(), time.process_time()

    def on_step_begin(self, *_, **__):
        if not sys.stdin.readline():
            sys.exit(0)
        self.excluded, self.loss = (0.0, 0.0), 0.0
        self.started = self.now()

    def on_step_end(self, *_, **__):
        spent = [now - then - out for now, then, out in zip(self.now(), self.started, self.excluded, strict=True)]
        print("STEP", *spent, self.loss, file=sys.stderr, flush=True)

    def exclude(self, function):
        def timed(*arguments):
            started = self.now()
            result = function(*arguments)
            spent = zip(self.excluded, self.now(), started, strict=True)
            self.excluded = tuple(out + now - then for out, now, then in spent)
            return result

        return timed


SDPO_SETTINGS = {
    "distillation_mode": "topk_logits",
    "distillation_topk": 100,
    "distillation_add_tail": True,
    "distillation_alpha": 0.5,
    "distillation_is_clip": 2.0,
    "teacher_update_rate": 0.05,
    "success_reward_threshold": 0.5,
    "diagnostics_warning_interval": 0,
}
"""Those of SDPO in Turnout, by TRL's names."""


def settings(num_rollouts, group_size, max_tokens, microbatch, folder):
    """One optimizer update a step, with what Turnout's runs have by default."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": microbatch,
        "gradient_accumulation_steps": num_rollouts // microbatch,
        "num_generations": group_size,
        "max_completion_length": max_tokens,
        "max_steps": 100_000,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "scale_rewards": "none",
        "beta": 0.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def grpo(recording, policy, values, data, reward):
    def rollout(prompts, _):
        completions = recording.take(prompts, "completions")
        return {"prompt_ids": recording.prompt_ids(prompts), "completion_ids": completions, "logprobs": None}

    arguments = GRPOConfig(**values, loss_type="dapo")
    return GRPOTrainer(model=policy, reward_funcs=reward, args=arguments, train_dataset=data, rollout_func=rollout)


def sdpo(recording, policy, values, data, reward):
    arguments = SDPOConfig(**values, **SDPO_SETTINGS)
    trainer = SDPOTrainer(model=policy, reward_funcs=reward, args=arguments, train_dataset=data)
    prompts = []
    sample = trainer.sample_rollouts

    def remember(inputs):
        prompts[:] = [row["prompt"] for row in inputs]
        return sample(inputs)

    def teacher_prompts(_):
        ids = [torch.tensor(row) for row in recording.take(prompts, "teacher_prompts")]
        masks = [torch.ones_like(row) for row in ids]
        return {
            "prompt_ids": pad(ids, padding_value=trainer._tokenizer.pad_token_id, padding_side="left"),
            "prompt_mask": pad(masks, padding_value=0, padding_side="left"),
        }

    trainer.sample_rollouts = remember
    trainer._generate = lambda _: (recording.prompt_ids(prompts), recording.take(prompts, "completions"))
    trainer.teacher_context_builder._tokenize_teacher_messages = teacher_prompts
    return trainer


def main(kind, path, policy, microbatch, folder):
    torch.set_num_threads(1)
    recording, clock = Recording(path), Clock()

    def reward(prompts, **_):
        return recording.take(prompts, "rewards")

    data = Dataset.from_list([{"prompt": group["prompt"]} for group in recording.groups])
    longest = max(len(ids) for group in recording.groups for ids in group["completions"])
    num_rollouts = len(recording.groups) * recording.size
    values = settings(num_rollouts, recording.size, longest, int(microbatch), folder) | {"shuffle_dataset": False}
    trainer = {"grpo": grpo, "sdpo": sdpo}[kind](recording, policy, values, data, reward)
    trainer._prepare_inputs = clock.exclude(trainer._prepare_inputs)
    step = trainer.training_step

    def training_step(*arguments):
        loss = step(*arguments)
        clock.loss += float(loss)
        return loss

    trainer.training_step = training_step
    trainer.add_callback(clock)
    print("READY", file=sys.stderr, flush=True)
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
