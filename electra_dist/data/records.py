"""What sources read and give: options, pieces, documents, bad records.

A piece is what one worker encodes at a time: it is cut by the parent, which only reads and
decompresses, and parsed by a worker. Its bytes depend on the input and the options only.
"""

from collections import Counter
from dataclasses import dataclass, field

from electra_dist.data.sentences import SPLITTERS
from electra_dist.errors import UserError

PIECE_BYTES = 1 << 20
"""Text a piece holds, about: half a second of a worker. A longer document is a piece of its own."""

NOT_UTF8 = "not UTF-8"
NOT_UNICODE = "the text holds half of a surrogate pair"
NOT_JSON = "not JSON"
NOT_AN_OBJECT = "not a JSON object"
NO_FIELD = "the text field is missing"
FIELD_NOT_A_STRING = "the text field is not a string"
DAMAGED_ARCHIVE = "the archive is cut short or damaged from here on"
NOT_PARQUET = "not a whole Parquet file"
DAMAGED_ROW_GROUP = "the row group is damaged from here on"
BINARY = "a binary file (it holds NUL bytes)"
EMPTY_FILE = "the file is empty"
RECORD_TOO_LARGE = "a JSON record whose text does not begin within max_document_bytes"
SPLITS = {
    "split_documents": "a document over max_document_bytes, split",
    "split_sentences": "a sentence over max_sentence_bytes, split",
}


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What a source may be told. Checked at construction (UserError)."""

    text_field: str = "text"
    """jsonl, parquet, hf: the field or column that holds a record's text."""
    splitter: str = "punctuation"
    """A name in `SPLITTERS`: how a line becomes sentences."""
    max_document_bytes: int = 64 << 20
    """UTF-8 bytes; a longer document becomes several: it is held in memory as a whole."""
    max_sentence_bytes: int = 1 << 20
    """UTF-8 bytes; a longer sentence (or line, with splitter `lines`) is cut at white space."""
    hf_name: str | None = None
    """hf: the configuration of the dataset, where it has several."""
    hf_split: str = "train"
    """hf: the split to read."""

    def __post_init__(self) -> None:
        if self.splitter not in SPLITTERS:
            raise UserError(
                f"splitter {self.splitter!r} is unknown: use one of {', '.join(sorted(SPLITTERS))}"
            )
        for name in ("max_document_bytes", "max_sentence_bytes"):
            # A character of UTF-8 has up to 4 bytes, and each cut must make progress.
            if getattr(self, name) < 16:
                raise UserError(f"{name} {getattr(self, name)} is too small: use 16 or more")


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its sentences, stripped, in order. No sentences: an empty document."""

    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """One record that cannot be used, or was cut, to be named in quarantine.jsonl."""

    byte_offset: int | None
    """In the decompressed file; None for sources of rows."""
    reason: str
    """One of the constants above."""
    row: int | None = None
    """parquet, hf: counted from 0."""
    detail: str = ""
    """What was found instead, where that helps."""
    kept: bool = False
    """True: nothing is lost, a document or sentence was split; not to be counted as bad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one worker parses and encodes at a time. Picklable."""

    file_index: int
    offset: int
    """Where it begins: byte in the decompressed file, or row."""
    payload: bytes
    """Lines of text as they stand in the file, or an Arrow stream of one column (tables.py)."""
    num_bytes: int
    """What it takes of the stored (compressed) file, about: for progress."""
    continues: bool = False
    """It begins inside a document that was over max_document_bytes."""
    error: BadRecord | None = None
    """Found while reading, after this payload: a damaged archive, say."""
    of_rows: bool = False
    """`offset` counts rows."""

    def record(self, offset: int, reason: str, detail: str = "", kept: bool = False) -> BadRecord:
        """Names a record of this piece, by its byte or row."""
        if self.of_rows:
            return BadRecord(None, reason, offset, detail, kept)
        return BadRecord(offset, reason, None, detail, kept)


@dataclass(kw_only=True)
class ParsedPiece:
    """What is in a piece; filled by the source that parses it."""

    documents: list[Document] = field(default_factory=list)
    """In order, empty ones included."""
    bad_records: list[BadRecord] = field(default_factory=list)
    num_records: int = 0
    """Non-blank lines or rows, good and bad: the quarantine share is measured against them."""
    cleaning: Counter[str] = field(default_factory=Counter)
    """How often what was changed: the names of cleaning.CLEANING and of `SPLITS`."""
