"""The buffer that files are cut into pieces through: it holds what no piece has taken yet."""

from collections.abc import Iterator
from contextlib import contextmanager

from electra_dist.data import records
from electra_dist.data.input_files import InputFile, OpenFile, open_file
from electra_dist.data.records import BadRecord, Piece

# What is looked at to call a file binary, as grep does.
_FIRST_BLOCK_BYTES = 32 << 10


class ByteBuffer:
    """Reads a file in steps of `PIECE_BYTES`; damage of an archive ends it and is kept."""

    def __init__(self, opened: OpenFile, file_index: int) -> None:
        self.data = bytearray()
        """What no piece has taken yet."""
        self.ended = False
        """Nothing follows `data`."""
        self._opened, self._file_index = opened, file_index
        self._offset = self._raw_position = 0
        self._continues = False
        self._error = self._detail = ""

    def grow(self) -> None:
        """Reads `PIECE_BYTES` more; sets `ended` at the file's end and where it is damaged.

        Raises OSError for what is no damage of the data: a failing disk must stop the build.
        """
        # read1 gives what was decompressed before the damage; read would lose it.
        read = getattr(self._opened.stream, "read1", self._opened.stream.read)
        wanted = len(self.data) + records.PIECE_BYTES
        try:
            while not self.ended and len(self.data) < wanted:
                block = read(wanted - len(self.data))
                self.data += block
                self.ended = not block
        except Exception as error:
            if not self._opened.is_damage(error):
                raise
            self.ended, self._error = True, records.DAMAGED_ARCHIVE

    def check(self) -> None:
        """Reads the first bytes; a binary or empty file ends here."""
        self.grow()
        if b"\0" in self.data[:_FIRST_BLOCK_BYTES]:
            wide = self.data.startswith((b"\xff\xfe", b"\xfe\xff"))
            self._detail = "UTF-16: convert it to UTF-8" if wide else ""
            self.ended, self._error = True, records.BINARY
            self.data.clear()
        elif not self.data and not self._error:
            self._error = records.EMPTY_FILE

    def take(
        self, num_bytes: int, *, splits: bool = False, head: bytes = b"", tail: bytes = b""
    ) -> Piece:
        """The first bytes as a piece, between `head` and `tail`.

        `splits`: a document goes on after it.
        """
        with memoryview(self.data) as view:
            payload = b"".join((head, view[:num_bytes], tail))
        piece = Piece(
            file_index=self._file_index,
            offset=self._offset,
            payload=payload,
            num_bytes=self._progress(),
            continues=self._continues,
        )
        self.advance(num_bytes)
        self._continues = splits
        return piece

    def advance(self, num_bytes: int) -> None:
        """Drops the first bytes."""
        del self.data[:num_bytes]
        self._offset += num_bytes

    def skip_line(self, reason: str) -> Piece:
        """Skips to the next line end; the piece only names what was skipped."""
        start = self._offset
        while (end := self.data.find(b"\n") + 1) == 0:
            self.advance(len(self.data))
            if self.ended:
                break
            self.grow()
        self.advance(end)
        self._continues = False
        return self._empty(BadRecord(start, reason))

    def rest(self) -> Iterator[Piece]:
        """What is left at the end: a last piece, and one for what was wrong with the file."""
        if self._error == records.DAMAGED_ARCHIVE:
            # The line that the damage cut is no record.
            del self.data[self.data.rfind(b"\n") + 1 :]
        if self.data:
            yield self.take(len(self.data))
        if self._error:
            yield self._empty(BadRecord(self._offset, self._error, detail=self._detail))

    def _progress(self) -> int:
        before, self._raw_position = self._raw_position, self._opened.raw.tell()
        return self._raw_position - before

    def _empty(self, error: BadRecord) -> Piece:
        return Piece(
            file_index=self._file_index,
            offset=error.byte_offset or 0,
            payload=b"",
            num_bytes=self._progress(),
            error=error,
        )


@contextmanager
def open_buffer(file: InputFile, file_index: int) -> Iterator[ByteBuffer]:
    """A buffer over the decompressed file, its first bytes read."""
    with open_file(file) as opened:
        buffer = ByteBuffer(opened, file_index)
        buffer.check()
        yield buffer
