"""Where documents come from: files in, pieces, documents and bad records out.

A source is two functions (docs/design/0005-data-plane.md). `pieces(file, file_index, options)` runs
in the parent and only reads, decompresses and cuts; `parse(piece, options)` runs in a worker and
decodes, cleans and splits into sentences. A new source is such a pair and a line in `SOURCES`:

    text, jsonl      line_files.py, through the buffer of pieces.py
    parquet, hf      tables.py and hub_datasets.py
    all              input_files.py finds and opens, documents.py cleans (cleaning.py), splits
                     (sentences.py) and keeps the limits; records.py holds what travels

Bad input becomes a `BadRecord`, never an exception: one broken line must not end a build of hours
What does raise is a disk or a network that fails.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from electra_dist.data import hub_datasets, input_files, line_files, tables
from electra_dist.data.documents import note_continued
from electra_dist.data.input_files import InputFile
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
    """`(file, file_index, options)`: in order, bounded in memory whatever the file."""
    parse: Callable[[Piece, SourceOptions], ParsedPiece]
    find: Callable[[Sequence[str]], list[InputFile]] = input_files.find_files
    """What the words after --input stand for."""


SOURCES: dict[str, Source] = {
    "text": Source(pieces=line_files.text_pieces, parse=line_files.parse_text),
    "jsonl": Source(pieces=line_files.jsonl_pieces, parse=line_files.parse_jsonl),
    "parquet": Source(pieces=tables.parquet_pieces, parse=tables.parse_rows),
    "hf": Source(
        pieces=hub_datasets.hf_pieces, parse=tables.parse_rows, find=hub_datasets.find_datasets
    ),
}


def source_named(kind: str) -> Source:
    """The source of that name. Raises UserError for an unknown one."""
    if kind not in SOURCES:
        raise UserError(f"--source {kind!r} is unknown: use one of {', '.join(sorted(SOURCES))}")
    return SOURCES[kind]


def find_files(inputs: Sequence[str], kind: str = "text") -> list[InputFile]:
    """The files behind --input. Raises UserError where one is missing or cannot be read."""
    return source_named(kind).find(inputs)


def pieces(kind: str, file: InputFile, file_index: int, options: SourceOptions) -> Iterator[Piece]:
    """The pieces of a file, in order: the same ones for the same file and options.

    Holds a few pieces in memory, whatever the file. Raises OSError where a disk fails.
    """
    return source_named(kind).pieces(file, file_index, options)


def parse(kind: str, piece: Piece, options: SourceOptions) -> ParsedPiece:
    """What a piece holds, `piece.error` included."""
    parsed = ParsedPiece()
    if piece.payload:
        parsed = source_named(kind).parse(piece, options)
        note_continued(parsed, piece)
    if piece.error is not None:
        parsed.bad_records.append(piece.error)
        parsed.num_records += 1
    return parsed


def read(kind: str, file: InputFile, options: SourceOptions) -> Iterator[Document]:
    """The documents of a file one after the other, bad records left out."""
    for piece in pieces(kind, file, 0, options):
        yield from parse(kind, piece, options).documents
