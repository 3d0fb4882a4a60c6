"""Randomness without state: every draw is keyed by what it is for, so no RNG state is ever saved.

Dropout uses torch's default generators, seeded per micro-batch (activation checkpointing then
replays the same masks); sampling noise comes from a private generator keyed by its site.
"""

from __future__ import annotations

import torch
from torch import Tensor

from electra_dist.runtime.keys import fold

# Sites keep the noise of one micro-batch apart: dropout and sampling never share a key.
DROPOUT_SITE = 1
SAMPLING_SITE = 2
INIT_SITE = 3


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Key torch's default generators (CPU and accelerators) for one micro-batch of one step."""
    torch.manual_seed(fold(seed, step, micro_batch, DROPOUT_SITE))


def sampling_uniforms(shape: tuple[int, ...], seed: int, step: int, micro_batch: int) -> Tensor:
    """One uniform number in [0, 1) a masked slot, drawn on the CPU: every device sees the same."""
    generator = torch.Generator().manual_seed(fold(seed, step, micro_batch, SAMPLING_SITE))
    return torch.rand(shape, generator=generator, dtype=torch.float32)
