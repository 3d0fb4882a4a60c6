"""Where documents come from: files in, pieces, documents and bad records out.

A source is two functions (docs/design/0005-data-plane.md). `pieces(file, file_index, options)` runs
in the parent and only reads, decompresses and cuts; `parse(piece, options)` runs in a worker and
decodes, cleans and splits into sentences. A new source is such a pair and a line in `SOURCES`.

Bad input becomes a `BadRecord`, never an exception: one broken line must not end a build of hours
(contracts, section 4). What does raise is a disk or a network that fails.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from electra_dist.data import line_files
from electra_dist.data.input_files import InputFile, find_files
from electra_dist.data.records import BadRecord, Document, ParsedPiece, Piece, SourceOptions
from electra_dist.errors import UserError

__all__ = [
    "SOURCES",
    "BadRecord",
    "Document",
    "InputFile",
    "ParsedPiece",
    "Piece",
    "Source",
    "SourceOptions",
    "find_files",
    "parse",
    "pieces",
    "read",
    "source_named",
]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of input."""

    pieces: Callable[[InputFile, int, SourceOptions], Iterator[Piece]]
    parse: Callable[[Piece, SourceOptions], ParsedPiece]


SOURCES: dict[str, Source] = {
    "text": Source(pieces=line_files.text_pieces, parse=line_files.parse_text),
    "jsonl": Source(pieces=line_files.jsonl_pieces, parse=line_files.parse_jsonl),
}


def source_named(kind: str) -> Source:
    """The source of that name. Raises UserError for an unknown one."""
    if kind not in SOURCES:
        raise UserError(f"--source {kind!r} is unknown: use one of {', '.join(sorted(SOURCES))}")
    return SOURCES[kind]


def pieces(kind: str, file: InputFile, file_index: int, options: SourceOptions) -> Iterator[Piece]:
    """The pieces of a file, in order: the same ones for the same file and options.

    Holds a few pieces in memory, whatever the file. Raises OSError where a disk fails.
    """
    return source_named(kind).pieces(file, file_index, options)


def parse(kind: str, piece: Piece, options: SourceOptions) -> ParsedPiece:
    """What a piece holds, `piece.error` included."""
    parsed = source_named(kind).parse(piece, options) if piece.payload else ParsedPiece()
    if piece.error is not None:
        parsed.bad_records.append(piece.error)
        parsed.num_records += 1
    return parsed


def read(kind: str, file: InputFile, options: SourceOptions) -> Iterator[Document]:
    """The documents of a file one after the other, bad records left out."""
    for piece in pieces(kind, file, 0, options):
        yield from parse(kind, piece, options).documents
