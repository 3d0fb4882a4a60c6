"""The buffer that files are cut into pieces through: it holds what no piece has taken yet."""

import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile
from typing import BinaryIO

from electra_dist.data import records
from electra_dist.data.input_files import InputFile, is_compressed, open_stream
from electra_dist.data.records import BadRecord, Piece

# What is looked at to call a file binary, as grep does.
_FIRST_BLOCK_BYTES = 32 << 10


class ByteBuffer:
    """Reads a file in steps of `PIECE_BYTES`; damage of an archive ends it and is kept."""

    def __init__(self, stream: BinaryIO, file_index: int, compressed: bool) -> None:
        self.data = bytearray()
        """What no piece has taken yet."""
        self.ended = False
        """Nothing follows `data`."""
        self._stream, self._file_index, self._compressed = stream, file_index, compressed
        self._offset = 0
        self._continues = False
        self._error = ""

    def grow(self) -> None:
        """Reads up to `PIECE_BYTES` more; sets `ended` at the end and where an archive is damaged.

        Raises OSError for what is no damage of the data: a failing disk must stop the build.
        """
        # read1 gives what was decompressed before the damage; read would lose it.
        read = getattr(self._stream, "read1", self._stream.read)
        wanted = len(self.data) + records.PIECE_BYTES
        try:
            while not self.ended and len(self.data) < wanted:
                block = read(wanted - len(self.data))
                self.data += block
                self.ended = not block
        except (EOFError, zlib.error, lzma.LZMAError, BadGzipFile):
            self._damaged()
        except OSError as error:
            # bz2 reports damage as an OSError without a number; a disk that fails has one.
            if not self._compressed or error.errno is not None:
                raise
            self._damaged()

    def check(self) -> None:
        """Reads the first bytes; a binary or empty file ends here."""
        self.grow()
        if b"\0" in self.data[:_FIRST_BLOCK_BYTES]:
            self.data.clear()
            self.ended, self._error = True, records.BINARY
        elif not self.data and not self._error:
            self._error = records.EMPTY_FILE

    def take(self, num_bytes: int, *, splits: bool = False) -> Piece:
        """The first bytes as a piece; `splits`: a document goes on after it."""
        with memoryview(self.data) as view:
            payload = bytes(view[:num_bytes])
        piece = Piece(
            file_index=self._file_index,
            offset=self._offset,
            payload=payload,
            num_bytes=num_bytes,
            continues=self._continues,
        )
        self._advance(num_bytes)
        self._continues = splits
        return piece

    def skip_line(self, reason: str) -> Piece:
        """Skips to the next line end; the piece only names what was skipped."""
        start = self._offset
        while (end := self.data.find(b"\n") + 1) == 0:
            self._advance(len(self.data))
            if self.ended:
                break
            self.grow()
        self._advance(end)
        return self._empty(BadRecord(start, reason), self._offset - start)

    def rest(self) -> Iterator[Piece]:
        """What is left at the end: a last piece, and one for what was wrong with the file."""
        if self._error == records.DAMAGED_ARCHIVE:
            # The line that the damage cut is no record.
            del self.data[self.data.rfind(b"\n") + 1 :]
        if self.data:
            yield self.take(len(self.data))
        if self._error:
            yield self._empty(BadRecord(self._offset, self._error), 0)

    def _advance(self, num_bytes: int) -> None:
        del self.data[:num_bytes]
        self._offset += num_bytes

    def _damaged(self) -> None:
        self.ended, self._error = True, records.DAMAGED_ARCHIVE

    def _empty(self, error: BadRecord, num_bytes: int) -> Piece:
        return Piece(
            file_index=self._file_index,
            offset=error.byte_offset or 0,
            payload=b"",
            num_bytes=num_bytes,
            error=error,
        )


@contextmanager
def open_buffer(file: InputFile, file_index: int) -> Iterator[ByteBuffer]:
    """A buffer over the decompressed file, its first bytes read."""
    with open_stream(file) as stream:
        buffer = ByteBuffer(stream, file_index, is_compressed(file))
        buffer.check()
        yield buffer
