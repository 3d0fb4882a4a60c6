"""Rows from the token store: [CLS] A [SEP] B [SEP], assembled for a whole batch at once.

Shapes: B rows, L positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from electra_dist.data.store import Corpus, Packing, SpecialIds


class Rows(NamedTuple):
    """A batch of unmasked rows."""

    input_ids_BL: NDArray[np.int64]
    token_type_ids_BL: NDArray[np.int64]
    num_tokens_B: NDArray[np.int64]
    """Real tokens, [CLS] and [SEP] included."""


class RowReader:
    """Reads rows of one split by sample id: ids run through the example files in their order."""

    def __init__(self, corpus: Corpus, packing: Packing, split: str) -> None:
        self._length = int(packing.manifest["length"])
        self._special = corpus.special_ids
        self._tokens = corpus.token_shards(split)
        self._examples = packing.examples(split)
        self._ends = np.cumsum([len(examples.start) for examples in self._examples], dtype=np.int64)
        self.num_rows = int(self._ends[-1]) if len(self._ends) else 0

    def read(self, sample_ids: NDArray[np.int64]) -> Rows:
        """The rows of `sample_ids`, in that order; a loop over shards, as a batch touches few."""
        shards = np.searchsorted(self._ends, sample_ids, side="right")
        touched = np.unique(shards)
        if len(touched) == 1:
            return self._read_from(int(touched[0]), sample_ids)
        shape = (len(sample_ids), self._length)
        rows = Rows(
            np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape[0], np.int64)
        )
        for shard in touched:
            here = shards == shard
            for whole, part in zip(
                rows, self._read_from(int(shard), sample_ids[here]), strict=True
            ):
                whole[here] = part
        return rows

    def _read_from(self, shard: int, sample_ids: NDArray[np.int64]) -> Rows:
        examples = self._examples[shard]
        first_id = int(self._ends[shard]) - len(examples.start)
        local = sample_ids - first_id
        return assemble(
            self._tokens[shard],
            examples.start[local],
            examples.length_a[local].astype(np.int64),
            examples.length_b[local].astype(np.int64),
            self._length,
            self._special,
        )


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
