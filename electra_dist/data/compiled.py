"""Rows and masks in machine code: one pass a row, where numpy makes some 50 calls a batch.

Bit for bit what `rows.assemble` and `masking.mask_rows` (mode `token`) give: those are the contract
and the oracle, this is a faster way to it. Importing this module imports numba; `fast_path.py`
does it, where it pays. Shapes: B rows, L positions, N masked slots of a row.

Nothing is cached on disk: numba would pickle, and ranks would meet in one folder of a network disk.
Every result of 32-bit arithmetic is cut back to 32 bits, as numba widens it to 64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_LAST = np.uint32(0xFFFFFFFF)


@njit(nogil=True)
def mix64(value: Any) -> Any:
    """`hashing.mix64` of one number."""
    value += _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * _MIX1
    value = (value ^ (value >> np.uint64(27))) * _MIX2
    return value ^ (value >> np.uint64(31))


@njit(nogil=True)
def mix32(value: Any) -> Any:
    """`hashing.mix32` of one number."""
    value = np.uint32(value ^ (value >> np.uint32(16)))
    value = np.uint32(value * np.uint32(0x7FEB352D))
    value = np.uint32(value ^ (value >> np.uint32(15)))
    value = np.uint32(value * np.uint32(0x846CA68B))
    return np.uint32(value ^ (value >> np.uint32(16)))


@njit(nogil=True)
def assemble(
    tokens: Any,
    start_B: Any,
    length_a_B: Any,
    length_b_B: Any,
    rows_B: Any,
    special: Any,
    ids_BL: Any,
    types_BL: Any,
    num_tokens_B: Any,
) -> bool:
    """Write [CLS] A [SEP] B [SEP] to rows `rows_B` of the last three arrays.

    `special` is the ids of [CLS], [SEP] and [PAD]. False where a row would reach outside of the
    tokens or of its L places, which no whole corpus asks for; what was written is then useless.
    """
    length = ids_BL.shape[1]
    cls, sep, pad = special[0], special[1], special[2]
    for i in range(len(start_B)):
        start, a, b, row = start_B[i], length_a_B[i], length_b_B[i], rows_B[i]
        num_tokens = a + 2 + b + (1 if b > 0 else 0)
        if start < 0 or a < 0 or b < 0 or start + a + b > len(tokens) or num_tokens > length:
            return False
        for j in range(a):
            ids_BL[row, j + 1] = tokens[start + j]
        for j in range(b):
            ids_BL[row, a + 2 + j] = tokens[start + a + j]
        for j in range(length):
            types_BL[row, j] = np.uint8(a + 2 <= j < num_tokens)
        for j in range(num_tokens, length):
            ids_BL[row, j] = pad
        ids_BL[row, 0] = cls
        ids_BL[row, a + 1] = sep
        ids_BL[row, num_tokens - 1] = sep
        num_tokens_B[row] = num_tokens
    return True


@njit(nogil=True)
def mask(
    ids_BL: Any,
    num_tokens_B: Any,
    sample_positions_B: Any,
    key: Any,
    num_selected_N: Any,
    slot_mask: Any,
    mask_below: Any,
    never: Any,
    mask_id: Any,
    masked_ids_BL: Any,
    positions_BN: Any,
    weights_BN: Any,
) -> bool:
    """Write masked ids, selected positions and weights to the last three arrays.

    The k smallest of a row's words in their order, without sorting the rest: about twice k lie
    below a limit that is guessed first; each of them goes to the slot that is the number of smaller
    ones. False where a row has more tokens than places.
    """
    length, num_slots = ids_BL.shape[1], positions_BN.shape[1]
    words = np.empty(length, np.uint32)
    few, rank_of = np.empty(length + 32, np.uint32), np.empty(length + 32, np.uint32)
    for row in range(len(ids_BL)):
        num_tokens = num_tokens_B[row]
        if num_tokens < 0 or num_tokens > length:
            return False
        keys = mix64(np.uint64(sample_positions_B[row]) ^ key)
        first, stride = np.uint32(keys >> np.uint64(32)), np.uint32(keys) | np.uint32(1)
        for j in range(num_tokens):
            draw = mix32(np.uint32(first + np.uint32(stride * np.uint32(j))))
            words[j] = np.uint32(draw & ~slot_mask) | np.uint32(j)
        for one in never:
            for j in range(num_tokens):
                words[j] = _LAST if ids_BL[row, j] == one else words[j]

        wanted = min(num_slots, num_selected_N[num_tokens])
        share = (1.2 * wanted + 5.0) / max(1, num_tokens)
        found = 0
        while True:
            limit = _LAST if share >= 1.0 else np.uint32(share * 4294967295.0)
            found = 0
            for j in range(num_tokens):
                few[found] = words[j]
                found += int(words[j] < limit)
            if found >= wanted or limit == _LAST:
                break
            share *= 2.0

        for j in range(length):
            masked_ids_BL[row, j] = ids_BL[row, j]
        for j in range(num_slots):
            positions_BN[row, j] = 0
            weights_BN[row, j] = 0.0
        # Filled up to whole blocks of what a processor compares at once.
        padded = (found + 31) // 32 * 32
        for j in range(found, padded):
            few[j] = _LAST
        for i in range(padded):
            rank_of[i] = 0
        for i in range(found):
            word = few[i]
            for j in range(padded):
                rank_of[j] += np.uint32(word < few[j])
        for i in range(found):
            words[np.int64(rank_of[i])] = few[i]  # no two are equal, none is _LAST
        num_used = min(found, wanted)
        for slot in range(num_used):
            place = np.int64(words[slot] & slot_mask)
            draw = mix32(np.uint32(first + np.uint32(stride * np.uint32(length + slot))))
            positions_BN[row, slot] = place
            weights_BN[row, slot] = 1.0
            masked_ids_BL[row, place] = mask_id if draw < mask_below else ids_BL[row, place]
    return True
