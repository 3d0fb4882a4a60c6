"""Which tokens are selected and which of them become [MASK] (algorithm: section 3).

A function of (seed, position) and of the row. Shapes: B rows, L positions, N masked slots of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from electra_dist.data.hashing import mix32, mix64
from electra_dist.runtime.keys import fold

MASK_TOKEN_SHARE = 0.85
"""Of the selected positions: 85 % become [MASK], 15 % stay, none becomes a random token."""
_SELECT, _KEEP = range(2)


@dataclass(frozen=True, kw_only=True)
class MaskRule:
    """What does not change from batch to batch."""

    seed: int
    """Key of all masks."""
    mask_prob: float
    """Share p of a row's tokens that is selected."""
    max_masked: int
    """Slots of a row: N = int((p + 0.005) L)."""
    mask_id: int
    """Id of [MASK]."""
    never: tuple[int, ...]
    """Ids that are never selected: [CLS], [SEP] and [MASK]."""


class Masks(NamedTuple):
    """The masks of a batch."""

    masked_ids_BL: NDArray[np.int64]
    """The rows with [MASK] in place."""
    positions_BN: NDArray[np.int64]
    """Selected positions, in random order; 0 in unused slots."""
    weights_BN: NDArray[np.float32]
    """1 in used slots, 0 else."""


def num_selected(
    num_tokens: NDArray[np.int64], mask_prob: float, max_masked: int
) -> NDArray[np.int64]:
    """K = max(1, min(N, round_half_even(p n))), in float32 as google-research/electra does it."""
    rounded = np.rint(np.float32(mask_prob) * num_tokens.astype(np.float32))
    selected: NDArray[np.int64] = np.clip(rounded.astype(np.int64), 1, max_masked)
    return selected


def mask_rows(
    input_ids_BL: NDArray[np.int64],
    num_tokens_B: NDArray[np.int64],
    sample_positions_B: NDArray[np.int64],
    rule: MaskRule,
) -> Masks:
    """Select a fixed count of positions a row, uniformly, without replacement; mask 85 % of them.

    Args:
        input_ids_BL: original rows; what lies beyond a row's tokens is never selected.
        num_tokens_B: real tokens of each row, [CLS] and [SEP] included.
        sample_positions_B: global sample positions, which key the draws.
        rule: probability, slots and special ids.
    """
    batch, length = input_ids_BL.shape
    slots_L = np.arange(length)
    candidates_BL = slots_L < num_tokens_B[:, None]
    for never in rule.never:
        candidates_BL &= input_ids_BL != never
    # Random high bits over the slot's own number: sorting the words sorts the slots at random, with
    # no argsort; numpy sorts 32-bit words with SIMD. 25 random bits at L = 128, 23 at 512.
    slot_mask = np.uint32((1 << max(1, (length - 1).bit_length())) - 1)
    words_BL = _draws(rule.seed, _SELECT, sample_positions_B, length)
    words_BL &= ~slot_mask
    words_BL |= slots_L.astype(np.uint32)
    words_BL[~candidates_BL] = np.uint32(0xFFFFFFFF)
    words_BL.sort(axis=1)
    num_slots = min(rule.max_masked, length)
    positions_BN = (words_BL[:, :num_slots] & slot_mask).astype(np.int64)

    num_selected_B = num_selected(num_tokens_B, rule.mask_prob, num_slots)
    used_BN = np.arange(num_slots) < np.minimum(num_selected_B, candidates_BL.sum(axis=1))[:, None]
    positions_BN[~used_BN] = 0

    draws_BN = _draws(rule.seed, _KEEP, sample_positions_B, num_slots)
    becomes_mask_BN = used_BN & (draws_BN < np.uint32(MASK_TOKEN_SHARE * 2**32))
    masked_ids_BL = input_ids_BL.copy()
    rows_BN = np.broadcast_to(np.arange(batch)[:, None], positions_BN.shape)
    masked_ids_BL[rows_BN[becomes_mask_BN], positions_BN[becomes_mask_BN]] = rule.mask_id
    return Masks(masked_ids_BL, positions_BN, used_BN.astype(np.float32))


def _draws(
    seed: int, site: int, sample_positions_B: NDArray[np.int64], num_slots: int
) -> NDArray[np.uint32]:
    """Uniform 32-bit numbers [B, num_slots] keyed by (seed, site, sample position, slot)."""
    keys_B = mix64(sample_positions_B.astype(np.uint64) ^ np.uint64(fold(seed, site)))
    start_B1 = (keys_B >> np.uint64(32)).astype(np.uint32)[:, None]
    stride_B1 = (keys_B.astype(np.uint32) | np.uint32(1))[:, None]
    slots_N = np.arange(num_slots, dtype=np.uint32)
    return mix32(np.add(start_B1, stride_B1 * slots_N, dtype=np.uint32))
