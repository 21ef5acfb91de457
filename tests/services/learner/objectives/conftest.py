"""One thread, for speed on small tensors."""

import torch

torch.set_num_threads(1)
