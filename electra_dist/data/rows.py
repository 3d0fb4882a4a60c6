"""Rows from the token store, assembled for a whole batch at once.

Modes `full` and `google`: [CLS] A [SEP] B [SEP]. Mode `packed`: blocks of [CLS] document [SEP], one
after the other. Shapes: B rows, L positions, K blocks of all rows of the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from electra_dist.data.store import Corpus, Examples, PackedExamples, Packing, SpecialIds


class Rows(NamedTuple):
    """A batch of unmasked rows."""

    input_ids_BL: NDArray[np.int64]
    token_type_ids_BL: NDArray[np.int64]
    num_tokens_B: NDArray[np.int64]
    """Real tokens, [CLS] and [SEP] included."""
    block_ids_BL: NDArray[np.int16] | None = None
    """Mode `packed`: 1, 2 ... for the blocks of a row and 0 for padding; else None."""
    position_ids_BL: NDArray[np.int32] | None = None
    """Mode `packed`: positions, from 0 in every block (0 in the padding); else None."""
    word_start_BL: NDArray[np.bool_] | None = None
    """Only where asked for: True at a token that starts a word; any value at special tokens."""


class RowReader:
    """Reads rows of one split by sample id: ids run through the example files in their order.

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
        self._tokens = corpus.token_shards(split)
        self._word_starts = (
            [shard.word_starts for shard in corpus.shards(split)] if word_starts else None
        )
        self._examples: list[Examples] | list[PackedExamples] = (
            packing.packed_examples(split) if packing.mode == "packed" else packing.examples(split)
        )
        self._ends = np.cumsum([len(examples.start) for examples in self._examples], dtype=np.int64)
        self.num_rows = int(self._ends[-1]) if len(self._ends) else 0

    def read(self, sample_ids: NDArray[np.int64]) -> Rows:
        """The rows of `sample_ids`, in that order; a loop over shards, as a batch touches few."""
        shards = np.searchsorted(self._ends, sample_ids, side="right")
        touched = np.unique(shards)
        if len(touched) == 1:
            return self._read_from(int(touched[0]), sample_ids)
        places = [np.flatnonzero(shards == shard) for shard in touched]
        parts = [
            self._read_from(int(shard), sample_ids[here])
            for shard, here in zip(touched, places, strict=True)
        ]
        fields: list[Any] = []
        for columns in zip(*parts, strict=True):
            whole = None
            if columns[0] is not None:
                whole = np.empty((len(sample_ids), *columns[0].shape[1:]), columns[0].dtype)
                for here, column in zip(places, columns, strict=True):
                    whole[here] = column
            fields.append(whole)
        return Rows(*fields)

    def _read_from(self, shard: int, sample_ids: NDArray[np.int64]) -> Rows:
        examples = self._examples[shard]
        first_id = int(self._ends[shard]) - len(examples.start)
        local = sample_ids - first_id
        start_B = examples.start[local]
        if isinstance(examples, PackedExamples):
            first_block_B = examples.block_offsets[local]
            num_blocks_B = examples.block_offsets[local + 1] - first_block_B
            rows = assemble_blocks(
                self._tokens[shard],
                start_B,
                num_blocks_B,
                examples.block_lengths[_ranges(first_block_B, num_blocks_B)].astype(np.int64),
                self._length,
                self._special,
            )
        else:
            rows = assemble(
                self._tokens[shard],
                start_B,
                examples.length_a[local].astype(np.int64),
                examples.length_b[local].astype(np.int64),
                self._length,
                self._special,
            )
        if self._word_starts is None:
            return rows
        return rows._replace(word_start_BL=word_starts(self._word_starts[shard], start_B, rows))


def assemble(
    tokens: NDArray[np.unsignedinteger],
    start_B: NDArray[np.int64],
    length_a_B: NDArray[np.int64],
    length_b_B: NDArray[np.int64],
    length: int,
    special: SpecialIds,
) -> Rows:
    """Gather token ranges into rows: types 0 for [CLS] A [SEP], 1 for B [SEP], padding has type 0.

    B's tokens follow A's in the store, so column j reads token start + j - 1, and one less behind
    the first [SEP].
    """
    columns_L = np.arange(length)
    first_sep_B1 = (length_a_B + 1)[:, None]
    has_b_B = length_b_B > 0
    num_tokens_B = length_a_B + 2 + np.where(has_b_B, length_b_B + 1, 0)
    behind_first_sep_BL = columns_L > first_sep_B1
    ids_BL = np.where(
        behind_first_sep_BL,
        _windows(tokens, start_B - 2, length),
        _windows(tokens, start_B - 1, length),
    )
    rows_B = np.arange(len(start_B))
    ids_BL[:, 0] = special.cls
    ids_BL[rows_B, length_a_B + 1] = special.sep
    ids_BL[rows_B, num_tokens_B - 1] = special.sep
    real_BL = columns_L < num_tokens_B[:, None]
    ids_BL[~real_BL] = special.pad
    return Rows(
        ids_BL.astype(np.int64), (behind_first_sep_BL & real_BL).astype(np.int64), num_tokens_B
    )


def assemble_blocks(
    tokens: NDArray[np.unsignedinteger],
    start_B: NDArray[np.int64],
    num_blocks_B: NDArray[np.int64],
    block_lengths_K: NDArray[np.int64],
    length: int,
    special: SpecialIds,
) -> Rows:
    """Gather token ranges into rows of blocks [CLS] tokens [SEP]; every row has at least one.

    The blocks of a row follow each other in the store too, so column j of block b = 1, 2 ... reads
    token start + j - (2 b - 1): that many special tokens stand before it.
    """
    shape = (len(start_B), length)
    columns_L = np.arange(length)
    row_K = np.repeat(np.arange(len(start_B)), num_blocks_B)
    end_K = np.cumsum(block_lengths_K + 2)  # as if the rows had no padding and followed each other
    end_B = end_K[np.cumsum(num_blocks_B) - 1]
    num_tokens_B = np.diff(end_B, prepend=0)
    last_column_K = end_K - (end_B - num_tokens_B)[row_K] - 1
    first_column_K = last_column_K - block_lengths_K - 1
    real_BL = columns_L < num_tokens_B[:, None]

    block_ids_BL = np.zeros(shape, np.int16)
    block_ids_BL[row_K, first_column_K] = 1
    np.cumsum(block_ids_BL, axis=1, out=block_ids_BL)
    block_ids_BL *= real_BL
    first_column_BL = np.zeros(shape, np.int32)
    first_column_BL[row_K, first_column_K] = first_column_K
    np.maximum.accumulate(first_column_BL, axis=1, out=first_column_BL)
    position_ids_BL = (columns_L.astype(np.int32) - first_column_BL) * real_BL

    source_BL = start_B[:, None] + columns_L - (2 * block_ids_BL.astype(np.int64) - 1)
    ids_BL = tokens.take(source_BL, mode="clip").astype(np.int64)
    ids_BL[row_K, first_column_K] = special.cls
    ids_BL[row_K, last_column_K] = special.sep
    ids_BL[~real_BL] = special.pad
    return Rows(ids_BL, np.zeros(shape, np.int64), num_tokens_B, block_ids_BL, position_ids_BL)


def word_starts(
    bits: NDArray[np.uint8], start_B: NDArray[np.int64], rows: Rows
) -> NDArray[np.bool_]:
    """The store's word-start bits (uint8 [ceil(T / 8)]) at the tokens of `rows`; [B, L]."""
    if rows.block_ids_BL is None:
        num_specials_BL = 1 + rows.token_type_ids_BL
    else:
        num_specials_BL = 2 * rows.block_ids_BL.astype(np.int64) - 1
    source_BL = start_B[:, None] + np.arange(num_specials_BL.shape[1]) - num_specials_BL
    octets_BL = bits.take(source_BL >> 3, mode="clip")
    starts_BL: NDArray[np.bool_] = (octets_BL >> (source_BL & 7).astype(np.uint8) & 1).astype(bool)
    return starts_BL


def _ranges(first_B: NDArray[np.int64], num_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """first, first + 1 ... of each range, one range after the other."""
    end_B = np.cumsum(num_B)
    return np.repeat(first_B - (end_B - num_B), num_B) + np.arange(end_B[-1])


def _windows(
    tokens: NDArray[np.unsignedinteger], start_B: NDArray[np.int64], length: int
) -> NDArray[np.unsignedinteger]:
    """tokens[start : start + length] of each row; what lies outside the shard is any token.

    Whole rows are copied, which is several times faster than a gather by an index matrix; at the
    ends of a shard, where a window would stick out, that gather is used.
    """
    if len(start_B) and start_B.min() >= 0 and start_B.max() + length <= len(tokens):
        return sliding_window_view(tokens, length)[start_B]
    windows_BL: NDArray[np.unsignedinteger] = tokens.take(
        start_B[:, None] + np.arange(length), mode="clip"
    )
    return windows_BL
