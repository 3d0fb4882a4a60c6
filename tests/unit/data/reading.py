"""Reads files through a source as a build does: pieces pickled to a worker, parsed there."""

import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from electra_dist.data import sources
from electra_dist.data.sources import BadRecord, SourceOptions


@dataclass
class Read:
    documents: list[tuple[str, ...]] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    """Records that cannot be used."""
    kept: list[BadRecord] = field(default_factory=list)
    """Documents and sentences that were split."""
    num_records: int = 0
    cleaning: Counter[str] = field(default_factory=Counter)
    num_pieces: int = 0
    num_bytes: int = 0
    largest_piece: int = 0


def read(kind: str, path: Path | str, **options: Any) -> Read:
    made = SourceOptions(**({"splitter": "lines"} | options))
    result = Read()
    for piece in all_pieces(kind, path, made):
        piece = pickle.loads(pickle.dumps(piece))  # noqa: S301 (multiprocessing does the same)
        parsed = sources.parse(kind, piece, made)
        result.documents += [document.sentences for document in parsed.documents]
        for record in parsed.bad_records:
            (result.kept if record.kept else result.bad).append(record)
        result.num_records += parsed.num_records
        result.cleaning += parsed.cleaning
        result.num_pieces += 1
        result.num_bytes += piece.num_bytes
        result.largest_piece = max(result.largest_piece, len(piece.payload))
    return result


def all_pieces(kind: str, path: Path | str, options: SourceOptions) -> Iterator[sources.Piece]:
    for index, file in enumerate(sources.find_files([str(path)], kind)):
        yield from sources.pieces(kind, file, index, options)


def named(records: list[BadRecord]) -> list[tuple[int | None, str]]:
    """(byte offset or row, reason) of each."""
    return [(r.byte_offset if r.row is None else r.row, r.reason) for r in records]
