"""One shard file: element ranges of named tensors, hashed per MiB as it is written and read.

The format is safetensors, the public one (8-byte header length, JSON header, raw little-endian
data), so that any safetensors reader opens a shard; the global offsets of its ranges stand in the
header's metadata. It is written here and not by the library because the library has neither
streaming nor hashing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from electra_dist.checkpoint.layout import BLOCK_BYTES, CorruptCheckpoint, ShardRecord

FloatArray = NDArray[np.float32]


class Piece(NamedTuple):
    """A contiguous element range of a named tensor."""

    name: str
    """`<parameter>/<kind>`."""
    start: int
    values: FloatArray


class Range(NamedTuple):
    """Where a piece lies in a shard."""

    name: str
    start: int
    stop: int
    first_byte: int
    """Offset of element `start` in the file."""


class _HashingWriter:
    """Appends bytes to an open file and hashes each MiB on the way."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._hasher = xxhash.xxh3_64()
        self._room = BLOCK_BYTES
        self.num_bytes = 0
        self.block_hashes: list[str] = []

    def write(self, data: memoryview) -> None:
        self.num_bytes += len(data)
        while len(data):
            part = data[: self._room]
            self._hasher.update(part)
            self._write_all(part)
            self._room -= len(part)
            data = data[len(part) :]
            if self._room == 0:
                self._close_block()

    def finish(self) -> None:
        if self._room < BLOCK_BYTES:
            self._close_block()

    def _write_all(self, part: memoryview) -> None:
        while len(part):  # a write may be short: quota, signals, pipes of a parallel file system
            part = part[os.write(self._descriptor, part) :]

    def _close_block(self) -> None:
        self.block_hashes.append(self._hasher.hexdigest())
        self._hasher = xxhash.xxh3_64()
        self._room = BLOCK_BYTES


def write_shard(path: Path, pieces: Sequence[Piece]) -> ShardRecord:
    """Write and fsync a shard.

    Raises:
        OSError: the disk did not take it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        writer = _HashingWriter(descriptor)
        writer.write(memoryview(_header(pieces)))
        for piece in pieces:
            if len(piece.values):
                little_endian = np.ascontiguousarray(piece.values, dtype="<f4")
                writer.write(little_endian.data.cast("B"))
        writer.finish()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return ShardRecord(file=path.name, bytes=writer.num_bytes, block_hashes=writer.block_hashes)


def _header(pieces: Iterable[Piece]) -> bytes:
    entries: dict[str, object] = {}
    ranges: dict[str, list[int]] = {}
    offset = 0
    for piece in pieces:
        size = 4 * len(piece.values)
        entries[piece.name] = {
            "dtype": "F32",
            "shape": [len(piece.values)],
            "data_offsets": [offset, offset + size],
        }
        assert piece.name not in ranges, f"{piece.name}: a shard holds one range of a tensor"
        ranges[piece.name] = [piece.start, piece.start + len(piece.values)]
        offset += size
    text = json.dumps({"__metadata__": {"ranges": json.dumps(ranges)}, **entries}).encode()
    text += b" " * (-len(text) % 8)  # data starts on 8 bytes, as the format asks
    return len(text).to_bytes(8, "little") + text


class ShardReader:
    """Reads byte ranges of a shard; no MiB is handed out before it agrees with the manifest."""

    def __init__(self, folder: Path, record: ShardRecord) -> None:
        self._path = folder / record.file
        self._record = record
        self._cached_block = -1
        self._cached = b""
        try:
            self._file = self._path.open("rb", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise CorruptCheckpoint(f"{self._path} cannot be opened ({error.strerror})") from None
        if size != record.bytes:
            self._file.close()
            raise CorruptCheckpoint(f"{self._path} has {size} bytes instead of {record.bytes}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def ranges(self) -> list[Range]:
        """The element ranges in this shard, from its (checked) header."""
        length = int.from_bytes(self.read(0, 8), "little")
        header = json.loads(self.read(8, length))
        ranges = json.loads(header["__metadata__"]["ranges"])
        return [
            Range(name, start, stop, 8 + length + header[name]["data_offsets"][0])
            for name, (start, stop) in ranges.items()
        ]

    def read(self, first_byte: int, num_bytes: int) -> bytes:
        """Checked bytes.

        Raises:
            CorruptCheckpoint: a block that covers the range is not what was written.
        """
        buffer = bytearray(num_bytes)
        self.read_into(first_byte, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, first_byte: int, target: memoryview) -> None:
        """Fill `target` with checked bytes, one block in memory at a time."""
        if first_byte + len(target) > self._record.bytes:
            raise CorruptCheckpoint(f"{self._path} ends before byte {first_byte + len(target)}")
        done = 0
        while done < len(target):
            block, offset = divmod(first_byte + done, BLOCK_BYTES)
            part = self._block(block)[offset : offset + len(target) - done]
            target[done : done + len(part)] = part
            done += len(part)

    def verify(self) -> None:
        """Check every block.

        Raises:
            CorruptCheckpoint: one is not what was written.
        """
        for block in range(len(self._record.block_hashes)):
            self._block(block)

    def _block(self, block: int) -> bytes:
        if block == self._cached_block:
            return self._cached
        try:
            data = os.pread(self._file.fileno(), BLOCK_BYTES, block * BLOCK_BYTES)
        except OSError as error:
            raise CorruptCheckpoint(
                f"{self._path}: block {block} cannot be read ({error.strerror})"
            ) from None
        if xxhash.xxh3_64_hexdigest(data) != self._record.block_hashes[block]:
            raise CorruptCheckpoint(f"{self._path}: block {block} (1 MiB) is damaged")
        self._cached_block, self._cached = block, data
        return data
