"""Rows of text: Parquet files and datasets of the `datasets` library.

The parent reads the text column in batches (pyarrow, page by page) and sends it on as Arrow
streams. Were workers to open the file, a piece would be a whole row group, as large as its writer
made it, or each piece would decode its whole row group again.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from electra_dist.data import records
from electra_dist.data.documents import add_texts
from electra_dist.data.input_files import InputFile, open_file, seekable
from electra_dist.data.records import BadRecord, ParsedPiece, Piece, SourceOptions

if TYPE_CHECKING:
    import pyarrow

MAX_BATCH_ROWS = 1024
# What a row counts beside its text: a piece of empty rows must end, too.
_ROW_BYTES = 16


def parquet_pieces(file: InputFile, file_index: int, options: SourceOptions) -> Iterator[Piece]:
    """Consecutive rows of a Parquet file's text column; a damaged row group is left out, named.

    Raises OSError for what is no damage of the file: a failing disk must stop the build.
    """
    import pyarrow
    import pyarrow.parquet

    cutter = RowCutter(file_index)
    with open_file(file) as opened:
        try:
            with seekable(opened) as stream:
                if not stream.read(1):
                    yield cutter.problem(0, records.EMPTY_FILE)
                    return
                # With a buffer size pages are read one after the other, else whole column chunks.
                table = pyarrow.parquet.ParquetFile(stream, buffer_size=1 << 20)
                if wrong := wrong_column(table.schema_arrow, options.text_field):
                    yield cutter.problem(0, *wrong)
                    return
                bytes_a_row = (file.num_bytes or 0) / max(table.metadata.num_rows, 1)
                yield from _row_groups(table, options.text_field, cutter, bytes_a_row)
        except Exception as error:
            if isinstance(error, pyarrow.ArrowException):
                yield cutter.problem(0, records.NOT_PARQUET, str(error))
            elif opened.is_damage(error):
                yield cutter.problem(0, records.DAMAGED_ARCHIVE)
            else:
                raise


def parse_rows(piece: Piece, options: SourceOptions) -> ParsedPiece:
    """Each row is a document; the lines of its text are split into sentences."""
    import pyarrow

    parsed = ParsedPiece()
    with pyarrow.ipc.open_stream(piece.payload) as reader:
        column = reader.read_all().column(0)
    texts = []
    for row, value in enumerate(_values(column), piece.offset):
        if isinstance(value, str):
            texts.append(value)
        else:
            reason = records.FIELD_NOT_A_STRING if value is None else records.NOT_UTF8
            parsed.bad_records.append(piece.record(row, reason))
    parsed.num_records += len(column)
    add_texts(parsed, texts, piece, options)
    return parsed


class RowCutter:
    """Gathers batches of a text column into pieces of about `PIECE_BYTES`."""

    def __init__(self, file_index: int) -> None:
        self._file_index = file_index
        self._first_row = 0
        self._waiting: list[pyarrow.Array] = []
        self._waiting_bytes = 0

    def add(
        self, first_row: int, column: "pyarrow.Array", bytes_a_row: float = 0
    ) -> Iterator[Piece]:
        """Takes rows that follow the last ones; gives the pieces that are full.

        `bytes_a_row` is what a row takes in the stored file, 0 where that is not known.
        """
        import pyarrow
        import pyarrow.compute

        column = column.cast(pyarrow.large_string())
        sizes = pyarrow.compute.fill_null(pyarrow.compute.binary_length(column), 0)
        ends = np.cumsum(sizes.to_numpy(zero_copy_only=False) + _ROW_BYTES)
        start = taken = 0
        while start < len(column):
            if not self._waiting:
                self._first_row = first_row + start
            room = records.PIECE_BYTES - self._waiting_bytes
            stop = min(int(np.searchsorted(ends, taken + room)) + 1, len(column))
            self._waiting.append(column.slice(start, stop - start))
            self._waiting_bytes += int(ends[stop - 1]) - taken
            start, taken = stop, int(ends[stop - 1])
            if self._waiting_bytes >= records.PIECE_BYTES:
                yield from self.rest(bytes_a_row)

    def rest(self, bytes_a_row: float = 0) -> Iterator[Piece]:
        """The rows that wait, as a piece."""
        import pyarrow

        if not self._waiting:
            return
        table = pyarrow.table({"text": pyarrow.chunked_array(self._waiting)})
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        self._waiting, self._waiting_bytes = [], 0
        yield Piece(
            file_index=self._file_index,
            offset=self._first_row,
            payload=sink.getvalue().to_pybytes(),
            num_bytes=round(bytes_a_row * table.num_rows) or table.nbytes,
            of_rows=True,
        )

    def problem(self, row: int, reason: str, detail: str = "") -> Piece:
        """A piece that only names what is wrong."""
        error = BadRecord(None, reason, row, detail)
        return Piece(file_index=self._file_index, offset=row, payload=b"", num_bytes=0, error=error)


def wrong_column(schema: "pyarrow.Schema", name: str) -> tuple[str, str] | None:
    """What is wrong with the text column, as reason and detail; None: nothing."""
    import pyarrow.types as kinds

    if name not in schema.names:
        return records.NO_FIELD, f"{name!r} is not among {', '.join(schema.names)}"
    kind = schema.field(name).type
    if kinds.is_dictionary(kind):
        kind = kind.value_type
    if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind):
        return None
    return records.FIELD_NOT_A_STRING, f"{name!r} is {kind}"


def _row_groups(
    table: Any, text_field: str, cutter: RowCutter, bytes_a_row: float
) -> Iterator[Piece]:
    import pyarrow

    first_row = 0
    for index in range(table.num_row_groups):
        group = table.metadata.row_group(index)
        row = first_row
        try:
            for batch in table.iter_batches(
                _batch_rows(group, text_field),
                row_groups=[index],
                columns=[text_field],
                use_threads=False,
            ):
                yield from cutter.add(row, batch.column(0), bytes_a_row)
                row += batch.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            yield from cutter.rest(bytes_a_row)
            yield cutter.problem(row, records.DAMAGED_ROW_GROUP, str(error))
        first_row += group.num_rows
    yield from cutter.rest(bytes_a_row)


def _batch_rows(group: Any, text_field: str) -> int:
    """Rows that hold about a piece of text."""
    columns = map(group.column, range(group.num_columns))
    num_bytes = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == text_field)
    rows = records.PIECE_BYTES * group.num_rows // max(num_bytes, 1)
    return int(min(max(rows, 1), MAX_BATCH_ROWS))


def _values(column: "pyarrow.ChunkedArray") -> Sequence[str | bytes | None]:
    """Rows as str, None where null, bytes where they are not UTF-8."""
    import pyarrow

    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_decoded(value) for value in column.cast(pyarrow.large_binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return value
