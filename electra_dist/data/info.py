"""What a corpus holds, JSON-able: sizes, lengths, vocabulary use, packings, what was left out.

It reads one shard's offsets at a time and no token, so a large corpus costs seconds and no memory.
Shapes: D documents and E rows of a shard, V ids.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from electra_dist.data.store import SPLITS, Array, Corpus, TokenShard, read_arrays

NUM_COMMONEST = 10
RARE = 100
"""An id seen less often than this in the train split has hardly been learned."""
NUM_FILL_BINS = 10
_NUM_RANKS = 100
_NUM_LENGTH_BINS = 63

_PACKING_FIELDS = (
    *("length", "mode", "seed", "num_examples", "held_out_examples"),
    *("two_segment_share", "short_sequence_share", "mean_blocks"),
)
_SOURCE_FIELDS = ("license", "weight", "duplicates", "near_duplicates", "bad_records", "cleaning")


def corpus_info(folder: str | Path) -> dict[str, Any]:
    """All that `corpus info` says. What a corpus of an older version did not record is None.

    Raises UserError when the folder is no whole corpus.
    """
    corpus = Corpus.open(folder)
    manifest = corpus.manifest
    counts = corpus.unigram_counts()
    return {
        "folder": str(corpus.folder),
        "fingerprint": corpus.fingerprint,
        "vocab_size": corpus.vocab_size,
        "dtype": manifest["dtype"],
        "tokenizer": manifest["tokenizer"],
        "splits": {split: _split_info(corpus, split) for split in SPLITS},
        "unknown_token_share": float(counts[corpus.special_ids.unk] / max(counts.sum(), 1)),
        "vocabulary": _vocabulary(corpus, counts),
        "bytes": sum(p.stat().st_size for p in corpus.folder.rglob("*") if p.is_file()),
        "sources": [_source(source) for source in manifest["sources"]],
        "licenses": _licenses(manifest["sources"]),
        "duplicates": {
            "exact": manifest.get("duplicates"),
            "near": manifest.get("near_duplicates"),
        },
        "left_out_by_weight": manifest.get("left_out_by_weight"),
        "cleaning": manifest.get("cleaning"),
        "empty_documents": manifest["empty_documents"],
        "quarantine": manifest["quarantine"],
        "packings": _packings(corpus.folder),
    }


def _split_info(corpus: Corpus, split: str) -> dict[str, Any]:
    entry = corpus.manifest["splits"][split]
    shards = corpus.shards(split)
    documents_by_bin = np.zeros(_NUM_LENGTH_BINS, np.int64)
    tokens_by_bin = np.zeros(_NUM_LENGTH_BINS, np.int64)
    for shard in shards:
        lengths_D = _document_lengths(shard)
        bins_D = _length_bins(lengths_D)
        documents_by_bin += np.bincount(bins_D, minlength=_NUM_LENGTH_BINS)
        # A float64 holds sums up to 2^53 tokens exactly.
        weights = np.bincount(bins_D, lengths_D, minlength=_NUM_LENGTH_BINS)
        tokens_by_bin += weights.astype(np.int64)
    documents = int(documents_by_bin.sum())
    middle = {(documents - 1) // 2, documents // 2} if documents else set()
    medians = [_length_of_rank(shards, documents_by_bin, rank) for rank in middle]
    filled = np.flatnonzero(documents_by_bin)
    return {
        "documents": entry["documents"],
        "sentences": entry["sentences"],
        "tokens": entry["tokens"],
        "shards": len(shards),
        "mean_document_tokens": float(tokens_by_bin.sum() / max(documents, 1)),
        "median_document_tokens": float(np.mean(medians)) if medians else 0.0,
        "document_lengths": [
            {
                "min_tokens": 1 << k,
                "max_tokens": (2 << k) - 1,
                "documents": int(documents_by_bin[k]),
                "tokens": int(tokens_by_bin[k]),
            }
            for k in (range(filled[0], filled[-1] + 1) if len(filled) else ())
        ],
    }


def _document_lengths(shard: TokenShard) -> Array:
    """int64 [D] in tokens, each at least 1."""
    return np.diff(shard.sentence_offsets[shard.document_offsets])


def _length_bins(lengths_D: Array) -> Array:
    """Integers [D]: k for lengths from 2^k to 2^(k + 1) - 1."""
    return np.frexp(lengths_D)[1] - 1


def _length_of_rank(shards: Sequence[TokenShard], documents_by_bin: Array, rank: int) -> int:
    """The length of the document that has `rank` shorter ones before it, by a look at its bin."""
    before = np.cumsum(documents_by_bin) - documents_by_bin
    k = int(np.searchsorted(before, rank, side="right")) - 1
    counts = np.zeros(1 << k, np.int64)
    for shard in shards:
        lengths_D = _document_lengths(shard)
        inside = lengths_D[_length_bins(lengths_D) == k] - (1 << k)
        counts += np.bincount(inside, minlength=1 << k)
    return int(np.searchsorted(np.cumsum(counts), rank - before[k], side="right")) + (1 << k)


def _vocabulary(corpus: Corpus, counts_V: Array) -> dict[str, Any]:
    special = corpus.special_ids
    # These never come from text: not to have been seen is their part.
    plain_V = np.ones(len(counts_V), np.bool_)
    plain_V[[special.pad, special.cls, special.sep, special.mask]] = False
    order_V = np.argsort(-counts_V, kind="stable")
    sorted_V = counts_V[order_V]
    num_seen = int(np.count_nonzero(counts_V))
    ranks = np.unique(np.geomspace(1, max(num_seen, 1), _NUM_RANKS).astype(np.int64))
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    total = max(int(counts_V.sum()), 1)
    return {
        "never_seen": int(np.count_nonzero(plain_V & (counts_V == 0))),
        "seen_rarely": int(np.count_nonzero(plain_V & (counts_V > 0) & (counts_V < RARE))),
        "commonest": [
            {
                "token": tokenizer.id_to_token(int(id_)),
                "id": int(id_),
                "count": int(counts_V[id_]),
                "share": float(counts_V[id_] / total),
            }
            for id_ in order_V[: min(NUM_COMMONEST, num_seen)]
        ],
        "count_by_rank": [[int(rank), int(sorted_V[rank - 1])] for rank in ranks if num_seen],
    }


def _source(source: dict[str, Any]) -> dict[str, Any]:
    sizes = [file["bytes"] for file in source["files"]]
    return {
        "kind": source["kind"],
        "path": source["path"],
        "files": len(sizes),
        "bytes": None if None in sizes else sum(sizes),
        "documents": sum(file["documents"] for file in source["files"]),
        **{name: source.get(name) for name in _SOURCE_FIELDS},
    }


def _licenses(sources: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Documents under each licence, most first; None is a source without a word on it."""
    documents: Counter[str | None] = Counter()
    for source in sources:
        documents[source.get("license")] += sum(file["documents"] for file in source["files"])
    return [{"license": name, "documents": number} for name, number in documents.most_common()]


def _packings(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("pack_*_*/manifest.json")):
        if not path.parent.name.endswith(".building"):
            manifest = json.loads(path.read_bytes())
            found.append({name: manifest.get(name) for name in _PACKING_FIELDS})
            found[-1] |= _row_fill(path.parent, manifest)
    return found


def _row_fill(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """How full the rows of the train split are, [CLS] and [SEP] included."""
    length = manifest["length"]
    rows_by_fill = np.zeros(NUM_FILL_BINS, np.int64)
    num_tokens = num_rows = 0
    for record in manifest["files"]:
        if record["split"] == "train":
            used_E = _row_tokens(read_arrays(folder / record["file"]))
            num_tokens += int(used_E.sum())
            num_rows += len(used_E)
            bins_E = np.minimum(used_E * NUM_FILL_BINS // length, NUM_FILL_BINS - 1)
            rows_by_fill += np.bincount(bins_E, minlength=NUM_FILL_BINS)
    return {
        "fill_share": num_tokens / max(num_rows * length, 1),
        "rows_by_fill": rows_by_fill.tolist(),
    }


def _row_tokens(rows: dict[str, Array]) -> Array:
    """int64 [E]: tokens of each row, by the lengths of its segments or (mode packed) blocks."""
    if "block_lengths" in rows:
        ends = np.concatenate([[0], np.cumsum(rows["block_lengths"], dtype=np.int64)])
        offsets = rows["block_offsets"]
        packed: Array = np.diff(ends[offsets]) + 2 * np.diff(offsets)
        return packed
    length_a, length_b = rows["length_a"].astype(np.int64), rows["length_b"].astype(np.int64)
    return length_a + 2 + np.where(length_b > 0, length_b + 1, 0)
