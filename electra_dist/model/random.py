"""Randomness without state: every draw is keyed by what it is for, so no RNG state is ever saved.

The engine seeds torch's default generators for each micro-batch. A tower draws from them one key a
site (a place where something is dropped); a site's mask is a hash of its key and of each element's
number. So a mask can be made again (activation checkpointing), in any order (torch.compile), and no
two sites share noise. Sampling noise comes from a private generator keyed by its own site.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from electra_dist.runtime.keys import fold

# Sites keep the noise of one micro-batch apart: dropout and sampling never share a key.
DROPOUT_SITE = 1
SAMPLING_SITE = 2
INIT_SITE = 3

_LANE_VALUES = 2**16
_ROW_WORDS = 1024
_MULTIPLIERS = (0x7FEB352D, -0x7B935975)  # of lowbias32; the second is 0x846CA68B as int32


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Key torch's default generators (CPU and accelerators) for one micro-batch of one step."""
    torch.manual_seed(fold(seed, step, micro_batch, DROPOUT_SITE))


def sampling_uniforms(shape: tuple[int, ...], seed: int, step: int, micro_batch: int) -> Tensor:
    """One uniform number in [0, 1) a masked slot, drawn on the CPU: every device sees the same."""
    generator = torch.Generator().manual_seed(fold(seed, step, micro_batch, SAMPLING_SITE))
    return torch.rand(shape, generator=generator, dtype=torch.float32)


def site_keys(num_sites: int, device: torch.device) -> Tensor:
    """A key for each dropout site of one pass: int32 [sites, 2], from the default CPU generator."""
    keys = torch.randint(-(2**31), 2**31, (num_sites, 2), dtype=torch.int64)
    keys[:, 1] |= 1  # a stride: odd, so that it runs through all 2**32 words
    return keys.to(device=device, dtype=torch.int32, non_blocking=True)


def dropped_lanes(p: float) -> int:
    """How many of the 65536 values of a lane are dropped: 6554 for p = 0.1, which is 0.100006."""
    return min(round(p * _LANE_VALUES), _LANE_VALUES - 1)


def keep_scale(p: float) -> float:
    """What kept elements are multiplied by: 1 / (1 - p), with the p that is really dropped."""
    return _LANE_VALUES / (_LANE_VALUES - dropped_lanes(p))


def keep_mask(key: Tensor, shape: torch.Size | tuple[int, ...], p: float, like: Tensor) -> Tensor:
    """1 where an element is kept, 0 where it is dropped; type and device are those of `like`.

    A word serves two elements, 16 bits each. It mixes the sum of a row's hash and a column's, so
    that the words themselves take one multiplication: a tenth of the time of bernoulli on a CPU.

    Args:
        key: one row of `site_keys`: start and stride.
        shape: of the mask.
        p: share to drop; 0 < p < 1.
        like: a tensor of the wanted dtype and device.
    """
    num_elements = math.prod(shape)
    num_rows = -(-num_elements // (2 * _ROW_WORDS))
    hashes = _hashed(key, _ROW_WORDS + num_rows, like.device)
    words_RC = hashes[_ROW_WORDS:, None] + hashes[:_ROW_WORDS]  # rows' and columns'
    shifted_RC = words_RC >> 15
    words_RC.bitwise_xor_(shifted_RC).mul_(_MULTIPLIERS[0])
    # int32 shifts copy the sign. Before a multiplication that costs one bit of 32; here the upper
    # lane would never be negative.
    torch.bitwise_right_shift(words_RC, 16, out=shifted_RC).bitwise_and_(0xFFFF)
    lanes = words_RC.bitwise_xor_(shifted_RC).view(torch.int16).view(-1)[:num_elements].view(shape)
    mask = torch.empty(shape, dtype=like.dtype, device=like.device)
    return torch.ge(lanes, dropped_lanes(p) - _LANE_VALUES // 2, out=mask)


def _hashed(key: Tensor, count: int, device: torch.device) -> Tensor:
    """lowbias32 (C. Wellons) of start + stride i for i = 0 .. count - 1: int32."""
    words = torch.arange(count, dtype=torch.int32, device=device) * key[1] + key[0]
    for shift, multiplier in zip((16, 15), _MULTIPLIERS, strict=True):
        words = (words ^ (words >> shift)) * multiplier
    return words ^ (words >> 16 & 0xFFFF)
