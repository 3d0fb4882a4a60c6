"""Near duplicates: MinHash signatures (rensa), and which pairs of them are worth a comparison.

A document is the set of its runs of `SHINGLE_TOKENS` tokens. Signatures agree at a position with
the probability of the sets' Jaccard similarity (Broder 1997); documents that agree in all positions
of a band are compared (locality-sensitive hashing, Leskovec et al., Mining of Massive Datasets,
3.4). D documents, H hashes, B bands.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from electra_dist.data.dedup import equal_to_earlier
from electra_dist.data.hashing import mix64
from electra_dist.data.spool import Spool
from electra_dist.data.store import Array
from electra_dist.data.tokenize import EncodedDocuments
from electra_dist.errors import UserError

NUM_HASHES = 128
SHINGLE_TOKENS = 5
_SEED = 1
# A pair that is just as similar as the threshold is found with this probability at least.
_MIN_RECALL = 0.9
_PAIRS_AT_ONCE = 4096


def require_library() -> Any:
    """The rensa module (UserError where it is not installed)."""
    try:
        import rensa
    except ImportError:
        raise UserError(
            "--dedup near needs the rensa library, which is not installed:"
            " run `pip install electra_dist[dedup]`, or use --dedup exact"
        ) from None
    return rensa


def signatures(encoded: EncodedDocuments) -> Array:
    """uint32 [D, H]: the MinHash signature of each document."""
    if len(encoded.document_lengths) == 0:
        return np.zeros((0, NUM_HASHES), np.uint32)
    sentence_ends = np.cumsum(encoded.document_lengths, dtype=np.int64)
    ends = np.cumsum(encoded.sentence_lengths, dtype=np.int64)[sentence_ends - 1]
    starts = np.concatenate([[0], ends[:-1]])
    # A document shorter than a run has one, of all it holds.
    counts = np.maximum(ends - starts - (SHINGLE_TOKENS - 1), 1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    first = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    last = np.repeat(ends - 1, counts)
    hashes = mix64(encoded.tokens[first].astype(np.uint64))
    for i in range(1, SHINGLE_TOKENS):
        hashes = mix64(hashes ^ encoded.tokens[np.minimum(first + i, last)])
    matrix = require_library().RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, offsets.astype(np.uint64), NUM_HASHES, _SEED
    )
    return np.array(matrix.to_rows(), np.uint32)


def rows_per_band(threshold: float) -> int:
    """The most rows a band that still find 90 % of the pairs exactly at the threshold.

    More rows: fewer pairs that are compared in vain.
    """
    sizes = [rows for rows in (32, 16, 8, 4, 2) if _recall(threshold, rows) >= _MIN_RECALL]
    return sizes[0] if sizes else 1


def band_keys(signatures_DH: Array, rows: int) -> Iterator[Array]:
    """For each band of that many rows uint64 [D]: equal where the band is."""
    for start in range(0, NUM_HASHES, rows):
        keys = np.full(len(signatures_DH), start, np.uint64)
        for column in range(start, start + rows):
            keys = mix64(keys ^ signatures_DH[:, column])
        yield keys


class NearDuplicateIndex:
    """Collects signatures in document order, then says which came before in much the same words."""

    def __init__(self, folder: Path, threshold: float) -> None:
        self._threshold = threshold
        self._rows = rows_per_band(threshold)
        self._signatures = Spool(folder / ".signatures.spool")
        self._bands = [
            Spool(folder / f".band_{band}.spool") for band in range(NUM_HASHES // self._rows)
        ]

    def add(self, signatures_DH: Array) -> None:
        """Adds the next documents."""
        self._signatures.append(signatures_DH)
        for spool, keys in zip(self._bands, band_keys(signatures_DH, self._rows), strict=True):
            spool.append(keys[:, None])

    def find(self, left_out: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Bool [D]: an earlier document is as similar as the threshold; not looked at: left_out.

        Compared is the first document that agrees in a band, itself left out or not. So of a chain
        of versions, each like the one before, the first is kept.
        """
        num_documents = self._signatures.num_rows
        found = np.zeros(num_documents, np.bool_)
        signatures_DH = self._signatures.mapped()
        for band in self._bands:
            for rows, firsts in equal_to_earlier(band.blocks, num_documents):
                pairs = np.stack([rows, firsts])[:, ~(left_out[rows] | found[rows])]
                for start in range(0, pairs.shape[1], _PAIRS_AT_ONCE):
                    later, earlier = pairs[:, start : start + _PAIRS_AT_ONCE]
                    agree = (signatures_DH[later] == signatures_DH[earlier]).mean(axis=1)
                    found[later[agree >= self._threshold]] = True
        return found


def _recall(similarity: float, rows: int) -> float:
    return float(1 - (1 - similarity**rows) ** (NUM_HASHES // rows))
