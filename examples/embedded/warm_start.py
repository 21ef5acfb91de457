"""Makes the embedded policy: a 0.2 M-parameter Qwen3 that half knows the benchmark's facts.

`python -m examples.embedded.warm_start` trains it from random weights on lessons about training compositions (one
thread, fixed seeds, fixed number of steps) and writes policy/: weights, configuration, tokenizer, chat template and
provenance.json. `--check` repeats the first steps and compares their losses with that record, then the committed
weights' digest and validation loss: about 25 s on one core.
"""

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from examples.embedded.lessons import Lesson, batches
from examples.embedded.vocabulary import VOCABULARY, build_tokenizer

POLICY: Final = Path(__file__).parent / "policy"
NUM_STEPS: Final = 3000
NUM_TRUSTING_STEPS: Final = 1800
BATCH_LESSONS: Final = 48
PEAK_LEARNING_RATE: Final = 3e-3
WARMUP_STEPS: Final = 50
SEED: Final = 11
VALIDATION_SEED: Final = 12
VALIDATION_BATCHES: Final = 8
TRACE_STEPS: Final = 40
TOLERANCE: Final = 1e-4


def build_model() -> Qwen3ForCausalLM:
    """The policy with random weights (fp32)."""
    tokenizer_ids = {token: index for index, token in enumerate(VOCABULARY)}
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.06,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=tokenizer_ids["<|pad|>"],
        eos_token_id=tokenizer_ids["<|end|>"],
        bos_token_id=None,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, pad_token_id=config.pad_token_id, eos_token_id=config.eos_token_id
    )
    return model


def encode(lessons: list[Lesson], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both [lesson, position]; labels are -100 on the prompt and on padding."""
    prompts = [tokenizer.encode(lesson.prompt) for lesson in lessons]
    replies = [tokenizer.encode(lesson.reply) for lesson in lessons]
    longest = max(len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True))
    ids = torch.full((len(lessons), longest), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        end = len(prompt) + len(reply)
        ids[row, :end] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : end] = torch.tensor(reply)
    return ids, labels


def loss_of(model: Qwen3ForCausalLM, lessons: list[Lesson], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Mean cross-entropy in nats per reply token. Padding is on the right, so causal attention needs no mask."""
    ids, labels = encode(lessons, tokenizer)
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    logits = model.lm_head(hidden[targets != -100])
    return torch.nn.functional.cross_entropy(logits, targets[targets != -100])


def learning_rate(step: int) -> float:
    """Linear warm-up, constant until 30% of the steps, then a linear decay to 2% of the peak."""
    decay = max(0.0, (step / NUM_STEPS - 0.3) / 0.7)
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * (1 - 0.98 * decay)


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Iterator[float]:
    """Yields each step's loss (nats per reply token, before the step), taking one optimizer step per value."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    for step, lessons in zip(range(NUM_STEPS), batches("train", BATCH_LESSONS, SEED, NUM_TRUSTING_STEPS), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss = loss_of(model, lessons, tokenizer)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


@torch.no_grad()
def validation_loss(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Mean over fixed batches of lessons about validation compositions, nats per reply token."""
    source = batches("validation", BATCH_LESSONS, VALIDATION_SEED)
    losses = [loss_of(model, next(source), tokenizer).item() for _ in range(VALIDATION_BATCHES)]
    return sum(losses) / len(losses)


def start() -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The model before its first step, and its tokenizer; one thread, so that sums have one order."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    return build_model(), build_tokenizer()


def make(folder: Path) -> None:
    """Trains the policy and writes `folder`."""
    model, tokenizer = start()
    begun, trace = time.monotonic(), []
    for step, loss in enumerate(train(model, tokenizer)):
        trace.append(loss)
        if step % 200 == 199:
            recent = sum(trace[-40:]) / 40
            print(f"step {step + 1}: loss {recent:.4f}, {time.monotonic() - begun:.0f} s", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    provenance = {
        "command": "python -m examples.embedded.warm_start",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "threads": 1,
        "seed": SEED,
        "steps": NUM_STEPS,
        "lessons_per_step": BATCH_LESSONS,
        "seconds": round(time.monotonic() - begun),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "first_losses_nats": trace[:TRACE_STEPS],
        "validation_loss_nats": validation_loss(model, tokenizer),
        "weights_sha256": digest(folder),
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


def digest(folder: Path) -> str:
    """SHA-256 of the weights file."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def check(folder: Path) -> list[str]:
    """Which parts of the record in `folder` this machine does not reproduce; empty if it reproduces all."""
    record: dict[str, Any] = json.loads((folder / "provenance.json").read_text())
    model, tokenizer = start()
    recorded = record["first_losses_nats"]
    repeated = [loss for _, loss in zip(recorded, train(model, tokenizer), strict=False)]
    faults = [
        f"step {step}: loss {ours:.6f}, recorded {theirs:.6f}"
        for step, (ours, theirs) in enumerate(zip(repeated, recorded, strict=True))
        if not math.isclose(ours, theirs, rel_tol=TOLERANCE)
    ]
    if digest(folder) != record["weights_sha256"]:
        faults.append("the weights differ from the recorded ones")
    loss = validation_loss(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer)
    if not math.isclose(loss, record["validation_loss_nats"], rel_tol=TOLERANCE):
        faults.append(f"validation loss {loss:.6f}, recorded {record['validation_loss_nats']:.6f}")
    return faults


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Makes the embedded policy, or checks its record.")
    parser.add_argument("--check", action="store_true", help="repeat the first steps and compare with the record")
    parser.add_argument("--folder", type=Path, default=POLICY)
    arguments = parser.parse_args()
    if not arguments.check:
        make(arguments.folder)
        return
    faults = check(arguments.folder)
    print("\n".join(faults) or "The record holds.")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
