"""Where documents come from: files in, documents and bad records out.

A source is a function `(path, options) -> Iterator[Document | BadRecord]`; a new one is such a
function and a line in `SOURCES`. Bad input is yielded as a `BadRecord`, never raised: one broken
line must not end a build of hours (contracts, section 4). Byte offsets count in the decompressed
stream.
"""

import bz2
import glob
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from electra_dist.errors import UserError

NOT_UTF8 = "not UTF-8"
NOT_UNICODE = "the text holds half of a surrogate pair"
NOT_JSON = "not JSON"
NOT_AN_OBJECT = "not a JSON object"
NO_FIELD = "the text field is missing"
FIELD_NOT_A_STRING = "the text field is not a string"
DAMAGED_ARCHIVE = "the archive is cut short or damaged from here on"
TOO_LARGE = "over max_document_bytes"

_OPENERS: dict[str, Callable[..., object]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
# Binary containers that a line reader would only turn into thousands of quarantine records.
_UNREADABLE_SUFFIXES = {".zst", ".zip", ".tar", ".tgz", ".7z", ".lz4", ".parquet", ".arrow"}


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What a source may be told."""

    text_field: str = "text"
    """jsonl: the field that holds a record's text."""
    max_document_bytes: int = 64 << 20
    """A longer document or line is quarantined: a document is held in memory as a whole."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its non-blank lines, stripped, in order. No sentences: an empty document."""

    sentences: tuple[str, ...]
    num_records: int
    """Lines of the file that it was made of: the quarantine share is measured against them."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """One record that cannot be used, to be written to quarantine.jsonl."""

    byte_offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the input."""

    path: Path
    name: str
    """Relative to the folder it was found in, else as given: nothing that differs by machine."""
    given: str
    """The --input word that led to it."""


@dataclass(frozen=True, slots=True)
class _Line:
    byte_offset: int
    text: str


Source = Callable[[Path, SourceOptions], Iterator[Document | BadRecord]]


def read_text(path: Path, options: SourceOptions) -> Iterator[Document | BadRecord]:
    """Plain text: a line is a sentence; blank lines and the file's end separate documents."""
    sentences: list[str] = []
    first_offset = num_bytes = 0

    def document() -> Iterator[Document | BadRecord]:
        if num_bytes > options.max_document_bytes:
            yield BadRecord(first_offset, TOO_LARGE)
        elif sentences:
            yield Document(tuple(sentences), len(sentences))

    for line in _read_lines(path, options.max_document_bytes):
        if isinstance(line, BadRecord):
            yield line
            continue
        text = line.text.strip()
        if not text:
            yield from document()
            sentences, num_bytes = [], 0
            continue
        if num_bytes == 0:
            first_offset = line.byte_offset
        num_bytes += len(text.encode())
        if num_bytes <= options.max_document_bytes:
            sentences.append(text)
        else:
            sentences = []
    yield from document()


def read_jsonl(path: Path, options: SourceOptions) -> Iterator[Document | BadRecord]:
    """JSON lines: each line is a document; the lines of its text field are the sentences."""
    for line in _read_lines(path, options.max_document_bytes):
        if isinstance(line, BadRecord):
            yield line
        elif line.text.strip():
            yield _parse_record(line, options.text_field)


SOURCES: dict[str, Source] = {"text": read_text, "jsonl": read_jsonl}


def source_named(kind: str) -> Source:
    """The source of that name. Raises UserError for an unknown one."""
    if kind not in SOURCES:
        raise UserError(f"--source {kind!r} is unknown: use one of {', '.join(sorted(SOURCES))}")
    return SOURCES[kind]


def find_files(inputs: Sequence[str]) -> list[InputFile]:
    """The files behind a list of files, folders (all below, sorted, without hidden ones) and globs.

    Raises UserError for a path that is missing, a folder or glob without files, or a container that
    is not read here.
    """
    if not inputs:
        raise UserError("--input is empty: give at least one file, folder or glob")
    files = [file for given in inputs for file in _expand(given)]
    for file in files:
        if file.path.suffix.lower() in _UNREADABLE_SUFFIXES:
            raise UserError(
                f"--input {file.path} is a {file.path.suffix} file, which is not read here:"
                " give plain text or JSON lines, as they are or as .gz, .xz or .bz2"
            )
        if not os.access(file.path, os.R_OK):
            raise UserError(f"--input {file.path} may not be read by this user: change its rights")
    return files


def _expand(given: str) -> list[InputFile]:
    path = Path(given)
    if path.is_file():
        return [InputFile(path, path.name, given)]
    if path.is_dir():
        below = ((file.relative_to(path), file) for file in path.rglob("*") if file.is_file())
        visible = [(n, f) for n, f in below if not any(part.startswith(".") for part in n.parts)]
        found = [InputFile(f, n.as_posix(), given) for n, f in sorted(visible)]
    elif glob.has_magic(given):
        matches = sorted(glob.glob(given, recursive=True))  # noqa: PTH207 (keeps the spelling given)
        found = [InputFile(Path(match), match, given) for match in matches if Path(match).is_file()]
    else:
        raise UserError(f"--input {given} does not exist: check the path")
    if not found:
        raise UserError(f"--input {given} leads to no file: check the folder or the pattern")
    return found


def _parse_record(line: _Line, text_field: str) -> Document | BadRecord:
    try:
        record = json.loads(line.text)
    except (ValueError, RecursionError):  # RecursionError: a line of a million brackets
        return BadRecord(line.byte_offset, NOT_JSON)
    if not isinstance(record, dict):
        return BadRecord(line.byte_offset, NOT_AN_OBJECT)
    if text_field not in record:
        return BadRecord(line.byte_offset, NO_FIELD)
    text = record[text_field]
    if not isinstance(text, str):
        return BadRecord(line.byte_offset, FIELD_NOT_A_STRING)
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON may say "\ud800", which no tokenizer and no file can take
        return BadRecord(line.byte_offset, NOT_UNICODE)
    stripped = (sentence.strip() for sentence in text.split("\n"))
    return Document(tuple(sentence for sentence in stripped if sentence), 1)


def _read_lines(path: Path, max_line_bytes: int) -> Iterator[_Line | BadRecord]:
    """The lines of a plain or compressed UTF-8 file; one over the limit is skipped in pieces."""
    offset = 0
    with _open(path) as stream:
        try:
            while raw := stream.readline(max_line_bytes + 1):
                start, offset = offset, offset + len(raw)
                if len(raw) > max_line_bytes and not raw.endswith(b"\n"):
                    while rest := stream.readline(1 << 20):
                        offset += len(rest)
                        if rest.endswith(b"\n"):
                            break
                    yield BadRecord(start, TOO_LARGE)
                    continue
                try:
                    text = raw.decode("utf-8-sig" if start == 0 else "utf-8")
                except UnicodeDecodeError:
                    yield BadRecord(start, NOT_UTF8)
                    continue
                yield _Line(start, text)
        except (EOFError, zlib.error, lzma.LZMAError):
            yield BadRecord(offset, DAMAGED_ARCHIVE)
        except OSError as error:
            # gzip and bz2 report damage as an OSError without a number; a disk that fails has one
            # and must stop the build.
            if error.errno is not None:
                raise
            yield BadRecord(offset, DAMAGED_ARCHIVE)


def _open(path: Path) -> BinaryIO:
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, opener(path, "rb")), 1 << 20))
