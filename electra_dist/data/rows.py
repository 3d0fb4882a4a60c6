"""Rows from the token store, assembled for a whole batch at once.

Modes `full` and `google`: [CLS] A [SEP] B [SEP]. Mode `packed`: blocks of [CLS] document [SEP], one
after the other. Arrays are as small as their numbers allow: they are widened on the device, so that
a half, or less, is hashed and copied. Shapes: B rows, L positions, K blocks of all rows of a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from electra_dist.data.fast_path import fast_path
from electra_dist.data.store import (
    Array,
    Corpus,
    Examples,
    PackedExamples,
    Packing,
    SpecialIds,
    TokenShard,
)

Ids = NDArray[np.unsignedinteger]
"""Token ids as the corpus stores them: uint16 or uint32."""

NUM_BEFORE = 2
"""Tokens that are read before a row's first, so that no row reads left of its window."""


class Rows(NamedTuple):
    """A batch of unmasked rows."""

    input_ids_BL: Ids
    token_type_ids_BL: NDArray[np.uint8]
    num_tokens_B: NDArray[np.int64]
    """Real tokens, [CLS] and [SEP] included."""
    block_ids_BL: NDArray[np.int16] | None = None
    """Mode `packed`: 1, 2 ... for the blocks of a row and 0 for padding; else None."""
    position_ids_BL: NDArray[np.int32] | None = None
    """Mode `packed`: positions, from 0 in every block (0 in the padding); else None."""
    word_start_BL: NDArray[np.bool_] | None = None
    """Only where asked for: True at a token that starts a word; any value at special tokens."""


class _Shard(NamedTuple):
    tokens: TokenShard
    windows_NW: Ids
    """Every window of the tokens, a view: making one costs 20 us, as much as 30 rows."""
    examples: Examples | PackedExamples
    num_bytes: int


class RowReader:
    """Reads rows of one split by sample id: ids run through the example files in their order.

    A shard is opened when a row of it is first read. Of a corpus at an address, those read longest
    ago are let go once more is open than the cache may hold.

    Args:
        corpus: the token store.
        packing: its rows.
        split: "train" or "held_out".
        word_starts: gather `Rows.word_start_BL` too.
    """

    def __init__(
        self, corpus: Corpus, packing: Packing, split: str, *, word_starts: bool = False
    ) -> None:
        self._length = int(packing.manifest["length"])
        self._special = corpus.special_ids
        self._corpus, self._packing, self._split = corpus, packing, split
        self._word_starts = word_starts
        self._ends = np.cumsum([r["examples"] for r in packing.records(split)], dtype=np.int64)
        self.num_rows = int(self._ends[-1]) if len(self._ends) else 0
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._max_open_bytes = corpus.remote.cache.max_bytes if corpus.remote else None

    def read(self, sample_ids: NDArray[np.int64]) -> Rows:
        """The rows of `sample_ids`, in that order."""
        shards_B = np.searchsorted(self._ends, sample_ids, side="right")
        segments_only = self._packing.mode != "packed" and not self._word_starts
        if segments_only and len(sample_ids) and fast_path.is_on(0):
            rows = self._compiled(sample_ids, shards_B)
            if rows is not None:
                return rows
        first = int(shards_B[0]) if len(shards_B) else 0
        if (shards_B == first).all():
            return self._assembled([self._gathered(first, sample_ids)])
        # Shard by shard, then back into the order asked for.
        places_B = np.argsort(shards_B, kind="stable")
        sorted_ids, sorted_shards = sample_ids[places_B], shards_B[places_B]
        cuts = [0, *(np.flatnonzero(np.diff(sorted_shards)) + 1).tolist(), len(places_B)]
        rows = self._assembled(
            [
                self._gathered(int(sorted_shards[start]), sorted_ids[start:stop])
                for start, stop in pairwise(cuts)
            ]
        )
        back_B = np.empty_like(places_B)
        back_B[places_B] = np.arange(len(places_B))
        fields: list[Any] = [None if field is None else field[back_B] for field in rows]
        return Rows(*fields)

    def _compiled(self, sample_ids: NDArray[np.int64], shards_B: Array) -> Rows | None:
        """The same rows from machine code; None where it cannot give them."""
        shape = len(sample_ids), self._length
        first = int(shards_B[0])
        rows = Rows(
            np.empty(shape, self._shard(first).tokens.tokens.dtype),
            np.empty(shape, np.uint8),
            np.empty(len(sample_ids), np.int64),
        )
        special = np.array([self._special.cls, self._special.sep, self._special.pad], np.uint32)
        is_one = (shards_B == first).all()
        for index in [first] if is_one else np.unique(shards_B).tolist():
            places_B = np.flatnonzero(shards_B == index)
            tokens, _, examples, _ = self._shard(index)
            assert isinstance(examples, Examples), "only mode packed has other examples"
            local_B = sample_ids[places_B] - (int(self._ends[index]) - len(examples.start))
            done = fast_path.run(
                "assemble",
                np.asarray(tokens.tokens),
                examples.start[local_B],
                examples.length_a[local_B].astype(np.int64),
                examples.length_b[local_B].astype(np.int64),
                places_B,
                special,
                *rows[:3],
            )
            if not done:
                return None
        return rows

    def _gathered(self, index: int, sample_ids: NDArray[np.int64]) -> list[Array]:
        """What rows of one shard are made of: all that needs its memory maps."""
        tokens, windows_NW, examples, _ = self._shard(index)
        local_B = sample_ids - (int(self._ends[index]) - len(examples.start))
        first_B, width = examples.start[local_B] - NUM_BEFORE, self._length + 1
        parts: list[Array] = [windows(tokens.tokens, windows_NW, first_B)]
        if isinstance(examples, PackedExamples):
            first_block_B = examples.block_offsets[local_B]
            num_blocks_B = examples.block_offsets[local_B + 1] - first_block_B
            parts += [
                num_blocks_B,
                examples.block_lengths[ranges(first_block_B, num_blocks_B)],
            ]
        else:
            parts += [examples.length_a[local_B], examples.length_b[local_B]]
        if self._word_starts:
            parts.append(bit_windows(tokens.word_starts, first_B, width))
        return parts

    def _assembled(self, gathered: Sequence[list[Array]]) -> Rows:
        ids_BW, one, other, *starts = (
            column[0] if len(column) == 1 else np.concatenate(column)
            for column in zip(*gathered, strict=True)
        )
        make = assemble_blocks if self._packing.mode == "packed" else assemble
        rows = make(ids_BW, one, other, self._special)
        if starts:
            moved_BL = np.take_along_axis(starts[0], _sources(rows), axis=1)
            rows = rows._replace(word_start_BL=moved_BL)
        return rows

    def _shard(self, index: int) -> _Shard:
        shard = self._open.get(index)
        if shard is not None:
            self._open.move_to_end(index)
            return shard
        num_bytes = self._corpus.records(self._split)[index]["bytes"]
        num_bytes += self._packing.records(self._split)[index]["bytes"]
        if self._max_open_bytes is not None:
            # What is mapped cannot be evicted from the cache: let go of it before more is fetched.
            total = num_bytes + sum(shard.num_bytes for shard in self._open.values())
            while self._open and total > self._max_open_bytes:
                total -= self._open.popitem(last=False)[1].num_bytes
        tokens = self._corpus.shard(self._split, index)
        self._open[index] = _Shard(
            tokens,
            all_windows(tokens.tokens, self._length + 1),
            self._packing.shard_examples(self._split, index),
            num_bytes,
        )
        return self._open[index]


def assemble(windows_BW: Ids, length_a_B: Array, length_b_B: Array, special: SpecialIds) -> Rows:
    """Token ranges as rows: types 0 for [CLS] A [SEP], 1 for B [SEP], padding has type 0.

    B's tokens follow A's in the store: behind the first [SEP] a row's token stands one place
    further left in its window than before it.

    Args:
        windows_BW: tokens from NUM_BEFORE before each A on, W = L + 1.
        length_a_B: tokens of A.
        length_b_B: tokens of B, 0 for none.
        special: ids of [CLS], [SEP] and [PAD].
    """
    batch, length = len(windows_BW), windows_BW.shape[1] - 1
    behind_LL = _behind(length)
    first_sep_B = length_a_B.astype(np.int64) + 1
    num_tokens_B = first_sep_B + 1 + length_b_B + (length_b_B > 0)
    # Tables of masks and a masked copy cost a third of comparing and np.where.
    in_b_BL = behind_LL.take(first_sep_B, axis=0)
    ids_BL = windows_BW[:, 1:].copy()
    np.copyto(ids_BL, windows_BW[:, :-1], where=in_b_BL)
    ids_BL[:, 0] = special.cls
    flat, row_B = ids_BL.reshape(-1), np.arange(batch) * length
    flat[row_B + first_sep_B] = special.sep
    flat[row_B + num_tokens_B - 1] = special.sep
    types_BL = in_b_BL.view(np.uint8)
    _pad(ids_BL, types_BL, num_tokens_B, special.pad)
    return Rows(ids_BL, types_BL, num_tokens_B)


def assemble_blocks(
    windows_BW: Ids, num_blocks_B: Array, block_lengths_K: Array, special: SpecialIds
) -> Rows:
    """Token ranges as rows of blocks [CLS] tokens [SEP]; every row has at least one.

    Args:
        windows_BW: tokens from NUM_BEFORE before each row's first on, W = L + 1.
        num_blocks_B: blocks of each row.
        block_lengths_K: tokens of the blocks of all rows.
        special: ids of [CLS], [SEP] and [PAD].
    """
    batch, length = len(windows_BW), windows_BW.shape[1] - 1
    columns_L = np.arange(length, dtype=np.int32)
    row_K = np.repeat(np.arange(batch), num_blocks_B)
    # As if the rows had no padding and followed each other.
    end_K = np.cumsum(block_lengths_K.astype(np.int64) + 2)
    end_B = end_K[np.cumsum(num_blocks_B) - 1]
    num_tokens_B = np.diff(end_B, prepend=0)
    last_column_K = end_K - (end_B - num_tokens_B)[row_K] - 1
    first_column_K = last_column_K - block_lengths_K - 1
    real_BL = columns_L < num_tokens_B[:, None]

    block_ids_BL = np.zeros((batch, length), np.int16)
    block_ids_BL[row_K, first_column_K] = 1
    np.cumsum(block_ids_BL, axis=1, out=block_ids_BL)
    block_ids_BL *= real_BL
    position_ids_BL = np.zeros((batch, length), np.int32)
    position_ids_BL[row_K, first_column_K] = first_column_K
    np.maximum.accumulate(position_ids_BL, axis=1, out=position_ids_BL)
    np.subtract(columns_L, position_ids_BL, out=position_ids_BL)
    position_ids_BL *= real_BL

    types_BL = np.zeros((batch, length), np.uint8)
    rows = Rows(windows_BW[:, 1:], types_BL, num_tokens_B, block_ids_BL, position_ids_BL)
    ids_BL = np.take_along_axis(windows_BW, _sources(rows), axis=1)
    ids_BL[row_K, first_column_K] = special.cls
    ids_BL[row_K, last_column_K] = special.sep
    _pad(ids_BL, types_BL, num_tokens_B, special.pad)
    return rows._replace(input_ids_BL=ids_BL)


def _sources(rows: Rows) -> NDArray[np.int64]:
    """Which column of its window each token of a row is; any for special tokens and padding.

    As many special tokens stand before it in its row: 1 in A, 2 in B, 2 b - 1 in block b.
    """
    if rows.block_ids_BL is None:
        num_specials_BL = 1 + rows.token_type_ids_BL.astype(np.int64)
    else:
        num_specials_BL = 2 * rows.block_ids_BL.astype(np.int64) - 1
    length = num_specials_BL.shape[1]
    sources_BL: NDArray[np.int64] = np.arange(length) + NUM_BEFORE - num_specials_BL
    return np.minimum(sources_BL, length, out=sources_BL)


def _pad(ids_BL: Ids, types_BL: NDArray[np.uint8], num_tokens_B: Array, pad_id: int) -> None:
    """Blank what lies beyond the tokens of a row; few rows of a corpus are short."""
    length = ids_BL.shape[1]
    short_S = np.flatnonzero(num_tokens_B < length)
    if len(short_S):
        beyond_SL = _behind(length).take(num_tokens_B[short_S] - 1, axis=0)
        ids_BL[short_S] = np.where(beyond_SL, ids_BL.dtype.type(pad_id), ids_BL[short_S])
        types_BL[short_S] &= ~beyond_SL


@lru_cache(maxsize=4)
def _behind(length: int) -> NDArray[np.bool_]:
    """Row n of the table is True in the columns behind n; [L, L]."""
    columns_L = np.arange(length)
    return columns_L > columns_L[:, None]


def bit_windows(
    bits: NDArray[np.uint8], first_B: NDArray[np.int64], width: int
) -> NDArray[np.bool_]:
    """Bits first, first + 1 ... of each row, little order; outside of the store any; [B, width]."""
    place_BW = first_B[:, None] + np.arange(width)
    octets_BW = bits.take(place_BW >> 3, mode="clip")
    found_BW: NDArray[np.bool_] = (octets_BW >> (place_BW & 7).astype(np.uint8) & 1).astype(bool)
    return found_BW


def ranges(first_B: NDArray[np.int64], num_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """first, first + 1 ... of each range, one range after the other."""
    end_B = np.cumsum(num_B)
    return np.repeat(first_B - (end_B - num_B), num_B) + np.arange(end_B[-1])


def all_windows(tokens: Ids, width: int) -> Ids:
    """A view of tokens[i : i + width] for every i; of none where the shard is shorter than that."""
    if len(tokens) < width:
        return np.empty((0, width), tokens.dtype)
    return sliding_window_view(tokens, width)


def windows(tokens: Ids, windows_NW: Ids, first_B: NDArray[np.int64]) -> Ids:
    """tokens[first : first + W] of each row; what lies outside the shard is any token.

    Whole rows are copied, which is several times faster than a gather by an index matrix; at the
    ends of a shard, where a window would stick out, that gather is used.
    """
    if len(first_B) and first_B.min() >= 0 and first_B.max() < len(windows_NW):
        return windows_NW[first_B]
    width = windows_NW.shape[1]
    windows_BW: Ids = tokens.take(first_B[:, None] + np.arange(width), mode="clip")
    return windows_BW
