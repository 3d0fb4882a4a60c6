"""Randomness without state: every draw is keyed by what it is for, so no RNG state is ever saved.

Dropout uses torch's default generators, seeded per micro-batch (activation checkpointing then
replays the same masks); sampling noise comes from a private generator keyed by its site.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK64 = 2**64 - 1
# Sites keep the noise of one micro-batch apart: dropout and sampling never share a key.
DROPOUT_SITE = 1
SAMPLING_SITE = 2
INIT_SITE = 3


def fold(*keys: int) -> int:
    """Mix whole numbers into one 63-bit seed: any change of a key changes it all.

    Source: splitmix64, Steele et al. 2014.
    """
    state = 0
    for key in keys:
        state = (state ^ (key & _MASK64)) + 0x9E3779B97F4A7C15 & _MASK64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK64
        state ^= state >> 31
    return state >> 1


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Key torch's default generators (CPU and accelerators) for one micro-batch of one step."""
    torch.manual_seed(fold(seed, step, micro_batch, DROPOUT_SITE))


def sampling_uniforms(shape: tuple[int, ...], seed: int, step: int, micro_batch: int) -> Tensor:
    """One uniform number in [0, 1) a masked slot, drawn on the CPU: every device sees the same."""
    generator = torch.Generator().manual_seed(fold(seed, step, micro_batch, SAMPLING_SITE))
    return torch.rand(shape, generator=generator, dtype=torch.float32)
