"""`turnout doctor --gpu` runs its learner's parts by this program.

python -m services.learner.proof [--cpu] PART ...                       one JSON object per part on standard output
python -m services.learner.proof [--cpu] --write-model FOLDER TOKENIZER SHAPE DTYPE

Everything that libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import traceback
from pathlib import Path

from services.learner.model.ranks import leave, prepare_environment

prepare_environment()

import torch  # noqa: E402

from services.learner.proof.parts import PARTS  # noqa: E402
from services.learner.proof.random_model import Place, choose, write_model  # noqa: E402


def main(arguments: list[str]) -> int:
    """Run parts one after another. A part that fails does not stop the others; the exit code is 0 in any case."""
    parser = argparse.ArgumentParser(prog="python -m services.learner.proof")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--write-model", nargs=4)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS])
    given = parser.parse_args(arguments)
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if not given.cpu and not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no GPU; install it with deploy/install.sh gpu", file=sys.stderr)
        return 1
    if given.write_model:
        folder, tokenizer, shape, dtype = given.write_model
        write_model(Path(folder), Path(tokenizer), shape, dtype)
        return 0
    place = choose(cpu=given.cpu)
    for name in given.parts:
        print(json.dumps({"part": name, **run(name, place)}), file=report, flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    leave()
    return 0


def run(name: str, place: Place) -> dict[str, str]:
    """The result of one part, `passed` or `FAILED`, and what it found."""
    try:
        return {"result": "passed", "text": f"Qwen3 {place.shape}, {place.dtype}: {PARTS[name](place)}"}
    except Exception as error:  # noqa: BLE001  # the report names it, and the next part runs
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return {"result": "FAILED", "text": f"{type(error).__name__}: {lines[0]}"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
