"""Short rows of a micro-batch share one: less padding is computed, and attention has fewer rows.

A row ends where its document does, so of the rows of long documents some are short: an eighth of a
micro-batch is padding. Rows that share one are blocks of it, as those of mode `packed`: a token
attends to its own block only, and losses are the same but for rounding.

Shapes: B rows, L positions, N masked slots of a row, T tokens and S used slots of all rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    """Its number among the blocks there, from 1."""

    @property
    def num_rows(self) -> int:
        """Rows that are left."""
        return int(self.row_B.max()) + 1


def find_places(
    num_tokens_B: NDArray[np.int64], num_used_B: NDArray[np.int64], length: int, num_slots: int
) -> Places:
    """First fit, the longest first: rows of at most `length` tokens and `num_slots` used slots."""
    free_tokens_B = np.full(len(num_tokens_B), length)
    free_slots_B = np.full(len(num_tokens_B), num_slots)
    places = Places(*(np.zeros(len(num_tokens_B), np.int64) for _ in Places._fields))
    num_blocks_B = np.zeros_like(num_tokens_B)
    for row in np.argsort(-num_tokens_B, kind="stable").tolist():
        num_tokens, num_used = num_tokens_B[row], num_used_B[row]
        place = int(((free_tokens_B >= num_tokens) & (free_slots_B >= num_used)).argmax())
        num_blocks_B[place] += 1
        places.row_B[row], places.block_B[row] = place, num_blocks_B[place]
        places.column_B[row] = length - free_tokens_B[place]
        places.slot_B[row] = num_slots - free_slots_B[place]
        free_tokens_B[place] -= num_tokens
        free_slots_B[place] -= num_used
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
    used_BN = micro_batch.masked_weights_BN > 0
    num_rows, num_slots = used_BN.shape
    if micro_batch.block_ids_BL is not None:
        return micro_batch, uniforms_BN
    num_tokens_B = micro_batch.num_tokens_B
    places = find_places(num_tokens_B, used_BN.sum(axis=1), length, num_slots)
    if places.num_rows > (1.0 - least_saved) * num_rows:
        return micro_batch, uniforms_BN

    row_T, column_T = np.nonzero(np.arange(length) < num_tokens_B[:, None])
    token_place_T = places.row_B[row_T], places.column_B[row_T] + column_T
    row_S, slot_S = np.nonzero(used_BN)
    number_S = (used_BN.cumsum(axis=1) - 1)[row_S, slot_S]  # among the used ones of its row
    slot_place_S = places.row_B[row_S], places.slot_B[row_S] + number_S

    def put(values: Array, to: tuple[Array, Array], width: int) -> Any:
        rows = np.zeros((places.num_rows, width), values.dtype)
        rows[to] = values
        return rows

    def tokens(array_BL: Array) -> Any:
        return put(array_BL[row_T, column_T], token_place_T, length)

    def slots(array_BN: Array) -> Any:
        return put(array_BN[row_S, slot_S], slot_place_S, num_slots)

    positions_BN = micro_batch.masked_positions_BN
    positions_S = positions_BN[row_S, slot_S] + places.column_B[row_S]
    shared = replace(
        micro_batch,
        input_ids_BL=tokens(micro_batch.input_ids_BL),
        masked_ids_BL=tokens(micro_batch.masked_ids_BL),
        token_type_ids_BL=tokens(micro_batch.token_type_ids_BL),
        num_tokens_B=np.bincount(places.row_B, num_tokens_B).astype(np.int64),
        masked_positions_BN=put(positions_S.astype(positions_BN.dtype), slot_place_S, num_slots),
        masked_weights_BN=slots(micro_batch.masked_weights_BN),
        block_ids_BL=put(places.block_B[row_T].astype(np.int16), token_place_T, length),
        position_ids_BL=put(column_T.astype(np.int32), token_place_T, length),
    )
    return shared, slots(uniforms_BN)
