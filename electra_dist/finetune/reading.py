"""Labelled files to examples: TSV, CSV, JSONL, and folders of parallel files.

Every mistake in a file is a `UserError` that names the file and, where there is one, the line
(from 1).
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from electra_dist.errors import UserError

TABLE_SUFFIXES = (".tsv", ".txt", ".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a file, as text."""

    text: str
    text_b: str | None
    label: str | None
    """None where the label column was not asked for."""

    line: int
    """Line of the file on which the row starts, from 1."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns to read."""

    text: str
    text_b: str | None = None
    label: str | None = None
    """None: the file needs no label column (prediction)."""

    without_header: tuple[str, ...] = ()
    """Column names of a file that starts with data."""

    @property
    def wanted(self) -> list[str]:
        """The columns that must exist, in the order text, text_b, label."""
        return [name for name in (self.text, self.text_b, self.label) if name is not None]


def read_examples(path: Path, columns: Columns) -> list[Example]:
    """Read a whole file (or a folder of parallel files) as examples, in file order.

    `.csv` has quotes as RFC 4180; `.tsv` and `.txt` are split at tabs and know no quotes, as
    GLUE's files; `.jsonl` has one object a line. A folder holds one file a column, one value a
    line (SNIPS: `seq.in`, `label`).

    Raises:
        UserError: missing or empty file, not UTF-8, a missing column, a row of another width.
    """
    if path.is_dir():
        rows = _parallel_rows(path, columns)
    elif path.suffix.lower() == ".jsonl":
        rows = _jsonl_rows(path, columns)
    elif path.suffix.lower() == ".csv":
        rows = _named_rows(path, _csv_rows(path), columns)
    elif path.suffix.lower() in (".tsv", ".txt"):
        rows = _named_rows(path, _tsv_rows(path), columns)
    else:
        raise UserError(
            f"{path}: a file of examples must end in one of {', '.join(TABLE_SUFFIXES)}, not "
            f"{path.suffix or 'nothing'!r}; rename or convert it"
        )
    examples = list(rows)
    if not examples:
        raise UserError(f"{path}: the file holds no examples; give one with at least one row")
    return examples


def read_text(path: Path) -> str:
    """The text of a UTF-8 file (a byte order mark is dropped).

    Raises:
        UserError: missing, unreadable, empty, or not UTF-8 (names the line of the first bad byte).
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8; convert the file to "
            "UTF-8"
        ) from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty; give one with at least one row")
    return text


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, without line ends (LF or CR LF, nothing else)."""
    return [line.removesuffix("\r") for line in read_text(path).removesuffix("\n").split("\n")]


def _tsv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    # csv.QUOTE_NONE would also end a row at a lone \r; a plain split does not.
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield number, line.split("\t")


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    start = 1
    try:
        for row in reader:
            if row:
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {start}: not valid CSV ({error}); quote the field, or double the quotes "
            "inside it"
        ) from error


def _named_rows(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Columns
) -> Iterator[Example]:
    first_line, first = next(rows)
    found = set(columns.wanted) & set(first)
    if len(found) == len(columns.wanted):
        names = first
    elif not found and _starts_with_data(first, columns):
        names = list(columns.without_header)
        yield _example(dict(zip(names, first, strict=True)), columns, first_line)
    else:
        missing = next(name for name in columns.wanted if name not in first)
        raise _missing_column(path, first_line, missing, first)
    for line, row in rows:
        if len(row) != len(names):
            raise UserError(
                f"{path}, line {line}: the row has {len(row)} fields where {len(names)} are "
                f"expected ({', '.join(names)}); correct or remove the row"
            )
        yield _example(dict(zip(names, row, strict=True)), columns, line)


def _starts_with_data(first: list[str], columns: Columns) -> bool:
    # The files without a header (SST-2, CoLA) have a number as label; no column is named by one.
    # Without that check the header of another table of as many columns would pass as a row.
    has_number = any(field.strip().isdigit() for field in first)
    return has_number and len(first) == len(columns.without_header)


def _jsonl_rows(path: Path, columns: Columns) -> Iterator[Example]:
    for line, content in enumerate(read_lines(path), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {line}: not valid JSON ({error.msg}); correct the line"
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {line}: expected a JSON object, found {content[:40]!r}")
        for name in columns.wanted:
            if name not in row:
                raise _missing_column(path, line, name, list(row))
        fields = {name: row[name] for name in columns.wanted}
        for name, value in fields.items():
            is_label = name == columns.label
            if not isinstance(value, (str, int, float) if is_label else str):
                raise UserError(
                    f"{path}, line {line}: {name!r} must be a "
                    f"{'string or number' if is_label else 'string'}, found "
                    f"{json.dumps(value)[:40]}"
                )
        yield _example({name: str(value) for name, value in fields.items()}, columns, line)


def _parallel_rows(folder: Path, columns: Columns) -> Iterator[Example]:
    for name in columns.wanted:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: a folder of examples needs a file {name!r} with one value a line; it "
                f"holds {', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'}"
            )
    values = {name: read_lines(folder / name) for name in columns.wanted}
    counts = {name: len(lines) for name, lines in values.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"{folder}: its files must have equally many lines, found {counts}")
    for index in range(counts[columns.text]):
        row = {name: lines[index].strip() for name, lines in values.items()}
        yield _example(row, columns, index + 1)


def _example(row: dict[str, str], columns: Columns, line: int) -> Example:
    return Example(
        text=row[columns.text],
        text_b=None if columns.text_b is None else row[columns.text_b],
        label=None if columns.label is None else row[columns.label].strip(),
        line=line,
    )


def _missing_column(path: Path, line: int, name: str, found: list[str]) -> UserError:
    shown = ", ".join(repr(column[:40]) for column in found)
    return UserError(
        f"{path}, line {line}: there is no column {name!r} among {shown}; name one of these"
    )
