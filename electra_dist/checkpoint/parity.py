"""One more file beside the shards, from which a lost or damaged one of them is rebuilt.

`parity.xor` is the XOR of all shards, each padded with zeros to the longest. So all files together
cancel out, MiB by MiB, and any one of them, parity itself included, is the XOR of the others. In
each row of blocks one may be damaged; the hashes in the manifest tell which. manifest.json and
state.json are not covered.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from electra_dist.checkpoint.layout import (
    BLOCK_BYTES,
    CorruptCheckpoint,
    ShardRecord,
    read_manifest,
)
from electra_dist.checkpoint.shard import ShardReader, write_all
from electra_dist.runtime.files import fsync_folder

PARITY_FILE = "parity.xor"


def write_parity(folder: Path, shards: Sequence[ShardRecord]) -> ShardRecord:
    """Write and fsync the XOR of all shards, each block checked as it is read.

    Raises:
        CorruptCheckpoint: a shard is not what its rank has written.
        OSError: the disk did not take it.
    """
    length = max(shard.bytes for shard in shards)
    hashes = []
    path = folder / PARITY_FILE
    with _Members(folder, shards) as members:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for row in range(_num_rows(shards)):
                data = _xor(members.block(number, row) for number in range(len(shards)))
                block = data.tobytes()[: length - row * BLOCK_BYTES]
                hashes.append(xxhash.xxh3_64_hexdigest(block))
                write_all(descriptor, memoryview(block))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return ShardRecord(file=PARITY_FILE, bytes=length, block_hashes=hashes)


def repair(folder: Path) -> list[str]:
    """Rebuild what is lost or damaged; the names of the files that were rebuilt.

    Raises:
        CorruptCheckpoint: the manifest is damaged, there is no parity file, or two blocks of one
            row are damaged. Nothing was changed then.
        OSError: the disk did not take a rebuilt file.
    """
    manifest = read_manifest(folder)
    if manifest.parity is None:
        raise CorruptCheckpoint(f"{folder} was saved without a parity file (checkpoint.parity)")
    records = [*manifest.shards, manifest.parity]
    with _Members(folder, records) as members:
        damaged = [n for n in range(len(records)) if members.is_damaged(n)]
        rebuilt = {n: folder / f".{records[n].file}.rebuilt" for n in damaged}
        try:
            for number, path in rebuilt.items():
                _rebuild(path, records[number], members, number)
        except (CorruptCheckpoint, OSError):
            for path in rebuilt.values():
                path.unlink(missing_ok=True)
            raise
    for number, path in rebuilt.items():
        os.replace(path, folder / records[number].file)
    fsync_folder(folder)
    return [records[number].file for number in damaged]


class _Members:
    """The files that cancel out, open as far as they can be opened."""

    def __init__(self, folder: Path, records: Sequence[ShardRecord]) -> None:
        self._records = records
        self._readers: list[ShardReader | None] = []
        for record in records:
            try:
                self._readers.append(ShardReader(folder, record))
            except CorruptCheckpoint:
                self._readers.append(None)

    def __enter__(self) -> _Members:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers:
            if reader is not None:
                reader.close()

    def block(self, number: int, row: int) -> bytes:
        """The checked block of one file, shorter at its end and empty beyond it."""
        record, reader = self._records[number], self._readers[number]
        if reader is None:
            raise CorruptCheckpoint(f"{record.file} is missing or has another size")
        size = max(0, min(BLOCK_BYTES, record.bytes - row * BLOCK_BYTES))
        return reader.read(row * BLOCK_BYTES, size) if size else b""

    def is_damaged(self, number: int) -> bool:
        try:
            for row in range(len(self._records[number].block_hashes)):
                self.block(number, row)
        except CorruptCheckpoint:
            return True
        return False

    def rebuilt(self, number: int, row: int) -> bytes:
        """The block as it is, or as the others say that it was."""
        with contextlib.suppress(CorruptCheckpoint):
            return self.block(number, row)
        record = self._records[number]
        others = (n for n in range(len(self._records)) if n != number)
        block = _xor(self.block(n, row) for n in others).tobytes()
        block = block[: record.bytes - row * BLOCK_BYTES]
        if xxhash.xxh3_64_hexdigest(block) != record.block_hashes[row]:
            raise CorruptCheckpoint(f"{record.file}: block {row} cannot be rebuilt")
        return block


def _rebuild(path: Path, record: ShardRecord, members: _Members, number: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for row in range(len(record.block_hashes)):
            write_all(descriptor, memoryview(members.rebuilt(number, row)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _num_rows(records: Sequence[ShardRecord]) -> int:
    return max(len(record.block_hashes) for record in records)


def _xor(blocks: Iterator[bytes]) -> NDArray[np.uint8]:
    total = np.zeros(BLOCK_BYTES, np.uint8)
    for block in blocks:
        part = total[: len(block)]
        np.bitwise_xor(part, np.frombuffer(block, np.uint8), out=part)
    return total
