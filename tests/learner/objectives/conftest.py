"""Puts the repository's root on the import path for this folder's helpers; one thread, for speed on small tensors."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
torch.set_num_threads(1)
