"""One shard file: element ranges of named tensors, hashed per MiB as it is written and read.

The format is safetensors, the public one (8-byte header length, JSON header, raw little-endian
data), so that any safetensors reader opens a shard; the global offsets of its ranges stand in the
header's metadata. It is written here and not by the library because the library has neither
streaming nor hashing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from electra_dist.checkpoint.layout import (
    BLOCK_BYTES,
    CorruptCheckpoint,
    ShardRecord,
    patiently,
    shard_header,
)

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


def write_shard(path: Path, pieces: Sequence[Piece]) -> ShardRecord:
    """Write and fsync a shard; a thread beside the write hashes the same memory.

    Raises:
        OSError: the disk did not take it.
    """
    spans = [(one.name, one.start, one.start + len(one.values)) for one in pieces]
    header, ranges = shard_header(spans)
    chunks = [memoryview(header)]
    arrays = (np.ascontiguousarray(piece.values, dtype="<f4") for piece in pieces)
    chunks += [array.data.cast("B") for array in arrays if len(array)]
    with ThreadPoolExecutor(1, thread_name_prefix="checkpoint hashing") as beside:
        hashes = beside.submit(hash_blocks, chunks)  # xxhash and os.write release the GIL
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for chunk in chunks:
                write_all(descriptor, chunk)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return ShardRecord(
            file=path.name,
            bytes=sum(map(len, chunks)),
            block_hashes=hashes.result(),
            ranges=ranges,
        )


def verify_shard(folder: Path, record: ShardRecord) -> None:
    """Read a shard that has just been written back from the disk.

    Raises:
        CorruptCheckpoint: it is not what was written.
    """
    with contextlib.closing(ShardReader(folder, record)) as reader:
        reader.drop_cache()
        reader.verify()


def hash_blocks(chunks: Sequence[memoryview]) -> list[str]:
    """xxh3-64 of each MiB of the chunks' bytes in a row."""
    hashes = []
    hasher, room = xxhash.xxh3_64(), BLOCK_BYTES
    for chunk in chunks:
        done = 0
        while done < len(chunk):
            part = chunk[done : done + room]
            hasher.update(part)
            done += len(part)
            room -= len(part)
            if room == 0:
                hashes.append(hasher.hexdigest())
                hasher, room = xxhash.xxh3_64(), BLOCK_BYTES
    if room < BLOCK_BYTES:
        hashes.append(hasher.hexdigest())
    return hashes


def write_all(descriptor: int, data: memoryview) -> None:
    """Write every byte, in as many writes as it takes."""
    while len(data):  # a write may be short: quota, signals, 2 GiB, a parallel file system
        data = data[os.write(descriptor, data) :]


class ShardReader:
    """Reads byte and element ranges of a shard; every block that it touches is checked first.

    Args:
        folder: the checkpoint.
        record: the manifest's word on the shard.

    Raises:
        CorruptCheckpoint: the file is missing or has another size.
    """

    def __init__(self, folder: Path, record: ShardRecord) -> None:
        self._path = folder / record.file
        self._record = record
        self._cached_block = -1
        self._cached = b""
        self._descriptor = patiently(self._open, self._path)
        size = os.fstat(self._descriptor).st_size
        if size != record.bytes:
            self.close()
            raise CorruptCheckpoint(f"{self._path} has {size} bytes instead of {record.bytes}")

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def drop_cache(self) -> None:
        """Let the next reads come from the disk, where the system can be asked for that."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

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
            part = memoryview(self._block(block))[offset : offset + len(target) - done]
            target[done : done + len(part)] = part
            done += len(part)

    def check(self, first_byte: int, num_bytes: int) -> None:
        """Check the blocks that cover these bytes.

        Raises:
            CorruptCheckpoint: one of them is not what was written.
        """
        for block in range(first_byte // BLOCK_BYTES, -(-(first_byte + num_bytes) // BLOCK_BYTES)):
            self._block(block)

    def verify(self) -> None:
        """Check every byte.

        Raises:
            CorruptCheckpoint: one is not what was written.
        """
        self.check(0, self._record.bytes)

    def _block(self, block: int) -> bytes:
        if block != self._cached_block:
            data = patiently(lambda: self._read_block(block), self._path)
            if xxhash.xxh3_64_hexdigest(data) != self._record.block_hashes[block]:
                raise CorruptCheckpoint(f"{self._path}: block {block} (1 MiB) is damaged")
            self._cached_block, self._cached = block, data
        return self._cached

    def _read_block(self, block: int) -> bytes:
        if self._descriptor < 0:
            self._descriptor = self._open()
        data = b""
        try:
            while len(data) < BLOCK_BYTES:
                offset = block * BLOCK_BYTES + len(data)
                part = os.pread(self._descriptor, BLOCK_BYTES - len(data), offset)
                if not part:
                    break
                data += part
        except OSError:
            self.close()  # a stale handle of a network file system stays stale: open anew
            raise
        return data

    def _open(self) -> int:
        return os.open(self._path, os.O_RDONLY)
