"""Short rows of a micro-batch share one: less padding is computed, and attention has fewer rows.

A row ends where its document does, so of the rows of long documents some are short: an eighth of a
micro-batch is padding. Rows that share one are blocks of it, as those of mode `packed`: a token
attends to its own block only. Without dropout, whose masks go by place, losses are the same to
rounding.

Shapes: B rows, L positions, N masked slots of a row, T tokens and S used slots of all rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from electra_dist.data.rows import ranges
from electra_dist.data.store import Array
from electra_dist.data.stream import MicroBatch


class Places(NamedTuple):
    """Where each row of a micro-batch goes."""

    row_B: NDArray[np.int64]
    """The row that it shares."""
    column_B: NDArray[np.int64]
    """Of its first token there."""
    slot_B: NDArray[np.int64]
    """Of its first masked slot there."""
    block_B: NDArray[np.int64]
    """Its number among the blocks there, from 0."""

    @property
    def num_rows(self) -> int:
        """Rows that are left."""
        return int(self.row_B.max()) + 1


def find_places(
    num_tokens_B: NDArray[np.int64], num_used_B: NDArray[np.int64], length: int, num_slots: int
) -> Places:
    """First fit, the longest first: rows of at most `length` tokens and `num_slots` used slots."""
    places = Places(*(np.zeros(len(num_tokens_B), np.int64) for _ in Places._fields))
    # Most rows of a corpus are full: they stay alone, and no time is spent on them.
    is_alone_B = num_tokens_B + num_tokens_B.min() > length
    num_alone = int(is_alone_B.sum())
    places.row_B[is_alone_B] = np.arange(num_alone)
    num_others = len(num_tokens_B) - num_alone
    free_tokens = np.full(num_others, length)
    free_slots = np.full(num_others, num_slots)
    num_blocks = np.zeros(num_others, np.int64)
    for row in np.argsort(-num_tokens_B, kind="stable")[num_alone:].tolist():
        fits = (free_tokens >= num_tokens_B[row]) & (free_slots >= num_used_B[row])
        place = int(fits.argmax())
        places.row_B[row] = num_alone + place
        places.column_B[row] = length - free_tokens[place]
        places.slot_B[row] = num_slots - free_slots[place]
        places.block_B[row] = num_blocks[place]
        free_tokens[place] -= num_tokens_B[row]
        free_slots[place] -= num_used_B[row]
        num_blocks[place] += 1
    return places


def share_rows(
    micro_batch: MicroBatch, uniforms_BN: Array, length: int, *, least_saved: float
) -> tuple[MicroBatch, Array]:
    """The micro-batch and its sampling noise in fewer rows of `length`, where that saves enough.

    Args:
        micro_batch: rows of one or two segments; packed ones come back as they are.
        uniforms_BN: noise of each masked slot: it goes where the slot goes.
        length: at least the tokens of the longest row.
        least_saved: share of the rows; where fewer are saved all stays as it is.
    """
    if micro_batch.block_ids_BL is not None:
        return micro_batch, uniforms_BN
    used_BN = micro_batch.masked_weights_BN > 0
    num_rows, num_slots = used_BN.shape
    num_tokens_B, num_used_B = micro_batch.num_tokens_B, used_BN.sum(axis=1)
    places = find_places(num_tokens_B, num_used_B, length, num_slots)
    if places.num_rows > (1.0 - least_saved) * num_rows:
        return micro_batch, uniforms_BN

    width = micro_batch.input_ids_BL.shape[1]
    from_T = ranges(np.arange(num_rows) * width, num_tokens_B)
    to_T = ranges(places.row_B * length + places.column_B, num_tokens_B)
    from_S = np.flatnonzero(used_BN)
    to_S = ranges(places.row_B * num_slots + places.slot_B, num_used_B)

    def put(values: Array, to: Array, columns: int) -> Any:
        rows = np.zeros((places.num_rows, columns), values.dtype)
        rows.reshape(-1)[to] = values
        return rows

    def tokens(array_BL: Array) -> Any:
        return put(array_BL.reshape(-1)[from_T], to_T, length)

    def slots(array_BN: Array) -> Any:
        return put(array_BN.reshape(-1)[from_S], to_S, num_slots)

    positions_BN = micro_batch.masked_positions_BN
    moved_BN = positions_BN + places.column_B.astype(positions_BN.dtype)[:, None]
    shared = replace(
        micro_batch,
        input_ids_BL=tokens(micro_batch.input_ids_BL),
        masked_ids_BL=tokens(micro_batch.masked_ids_BL),
        token_type_ids_BL=tokens(micro_batch.token_type_ids_BL),
        num_tokens_B=np.bincount(places.row_B, num_tokens_B).astype(np.int64),
        masked_positions_BN=slots(moved_BN),
        masked_weights_BN=slots(micro_batch.masked_weights_BN),
        block_ids_BL=put(
            np.repeat(places.block_B + 1, num_tokens_B).astype(np.int16), to_T, length
        ),
        position_ids_BL=put((from_T % width).astype(np.int32), to_T, length),
    )
    return shared, slots(uniforms_BN)
