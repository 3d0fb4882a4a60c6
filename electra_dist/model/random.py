"""Randomness without state: every draw is keyed by what it is for, so no RNG state is ever saved.

The engine seeds torch's default generators for each micro-batch. A tower draws from them one key a
site (a place where something is dropped); a site's mask is a hash of its key and of each element's
row and column. So a mask can be made again (activation checkpointing), within any loop over a
matrix (torch.compile), and no two sites share noise. Sampling noise comes from a private generator
keyed by its own site.
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
_MULTIPLIERS = (0x7FEB352D, -0x7B935975)  # of lowbias32; the second is 0x846CA68B as int32


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Key torch's default generators (CPU and accelerators) for one micro-batch of one step."""
    number = fold(seed, step, micro_batch, DROPOUT_SITE)
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # without one, torch.manual_seed takes 1 ms to queue a call for each kind there might be
        torch.default_generator.manual_seed(number)


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


def site_words(keys_S2: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """What masks of up to a shape are made of: hashes, int32 [sites, words].

    lowbias32 (C. Wellons) of start + stride i: for each column, then for each pair of rows.
    """
    columns, num_pairs = _matrix(shape)
    numbers = torch.arange(columns + num_pairs, dtype=torch.int32, device=keys_S2.device)
    words = numbers * keys_S2[:, 1:] + keys_S2[:, :1]
    for shift, multiplier in zip((16, 15), _MULTIPLIERS, strict=True):
        words = (words ^ (words >> shift)) * multiplier
    return words ^ (words >> 16 & 0xFFFF)


def keep_mask(words: Tensor, shape: torch.Size | tuple[int, ...], p: float, like: Tensor) -> Tensor:
    """1 where an element is kept, 0 where it is dropped; type and device are those of `like`.

    A word serves an element of an even row and the one below it, 16 bits each. It mixes the sum of
    a hash of these rows and a hash of the column, so that words themselves take one multiplication:
    a tenth of the time of bernoulli on a CPU. Compiled, it is a lane an element, all of which stays
    in the registers of the loop that uses the mask.

    Args:
        words: of the site, from `site_words`: of this shape, or of more rows and columns.
        shape: of the mask; its last dimension are the columns.
        p: share to drop; 0 < p < 1.
        like: a tensor of the wanted dtype and device.
    """
    columns, num_pairs = _matrix(shape)
    num_rows = math.prod(shape[:-1])
    assert len(words) >= columns + num_pairs
    columns_C, pairs_P = words[:columns], words[columns : columns + num_pairs]
    least = (dropped_lanes(p) - _LANE_VALUES // 2) << 16  # of a kept lane, in the upper 16 bits
    if torch.compiler.is_compiling():
        rows_R = pairs_P.repeat_interleave(2)[:num_rows]
        odd_R = torch.arange(num_rows, dtype=torch.int32, device=words.device) & 1
        words_RC = _mixed(rows_R[:, None] + columns_C)
        # int32 shifts copy the sign, which would be xored into the upper lane: never negative.
        words_RC = words_RC ^ (words_RC >> 16 & 0xFFFF)
        lanes_RC = words_RC << ((1 - odd_R) << 4)[:, None]
        return (lanes_RC >= least).to(like.dtype).view(shape)
    words_PC = _mixed(pairs_P[:, None] + columns_C)
    mask_P2C = torch.empty(num_pairs, 2, columns, dtype=like.dtype, device=like.device)
    torch.ge(words_PC, least, out=mask_P2C[:, 1])
    lower_PC = words_PC.bitwise_xor_(words_PC >> 16).bitwise_left_shift_(16)
    torch.ge(lower_PC, least, out=mask_P2C[:, 0])
    return mask_P2C.view(2 * num_pairs, columns)[:num_rows].view(shape)


def _matrix(shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
    """Columns, and pairs of rows."""
    return (shape[-1] if shape else 1), (math.prod(shape[:-1]) + 1) // 2


def _mixed(words: Tensor) -> Tensor:
    """Each of the upper 16 bits depends on all bits of the word; the lower ones need them xored."""
    return (words ^ (words >> 15)) * _MULTIPLIERS[0]
