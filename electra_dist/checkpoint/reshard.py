"""Reading a checkpoint at any world size and ZeRO stage: the ranges that are asked for, checked.

Single ranges are read one after the other (`read_range`). A restore asks for many at once (`check`,
`fill`): threads go through the shards that hold any of them, window by window, front to back, so
that each block is read once and a thread keeps one block and one open file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from electra_dist.checkpoint.layout import (
    BLOCK_BYTES,
    KINDS,
    CorruptCheckpoint,
    ShardRecord,
    read_manifest,
    read_state,
)
from electra_dist.checkpoint.shard import FloatArray, ShardReader

NUM_THREADS = 4
"""For reading and hashing, which both let other threads run."""
WINDOW_BYTES = 64 * BLOCK_BYTES
"""What a thread takes of a shard at a time: whole blocks, so that no two threads read the same."""
MAX_OPEN_SHARDS = 64
"""Of single ranges: a block is kept of each, and a process may have 1,024 files open."""


class Wanted(NamedTuple):
    """A range of a tensor."""

    name: str
    """`<parameter>/<kind>`."""
    start: int
    """First element of the flattened tensor."""
    stop: int
    """One past the last."""
    target: FloatArray | None = None
    """Where `CheckpointReader.fill` puts it: one dimension, in memory in a row."""


class CheckpointReader:
    """An open checkpoint. Use it in a `with` statement. It opens the shards that are read from.

    Raises:
        CorruptCheckpoint: the manifest or state.json is not what was written (format version 1:
            or a shard's header).
        UserError: a newer version wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.state: dict[str, Any] = read_state(folder, self.manifest)
        self._open_shards: dict[int, ShardReader] = {}
        try:
            self._ranges = [self._ranges_of(n) for n in range(len(self.manifest.shards))]
        except CorruptCheckpoint:
            self.close()
            raise

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for shard in self._open_shards.values():
            shard.close()
        self._open_shards.clear()

    def read_range(self, parameter: str, kind: str, start: int, stop: int) -> FloatArray:
        """Elements [start, stop) of the flattened tensor, gathered from the shards that hold them.

        Raises:
            CorruptCheckpoint: a block is damaged, or no shard holds a part of the range.
        """
        values = np.empty(stop - start, dtype="<f4")
        wanted = Wanted(f"{parameter}/{kind}", start, stop, values)
        self._require([wanted])
        for number in range(len(self._ranges)):
            for first_byte, _, target in self._parts(number, [wanted]):
                if target is not None:
                    self._shard(number).read_into(first_byte, target)
        return values

    def read_whole(self, parameter: str, kind: str = "master") -> FloatArray:
        """A whole tensor in its shape."""
        shape = self.manifest.parameters[parameter]
        return self.read_range(parameter, kind, 0, math.prod(shape)).reshape(shape)

    def check(self, wanted: Iterable[Wanted]) -> None:
        """Read and hash every block that covers the ranges, and keep none of it.

        Raises:
            CorruptCheckpoint: a block is damaged, or no shard holds a part of a range.
        """
        self._visit([one._replace(target=None) for one in wanted])

    def fill(self, wanted: Iterable[Wanted]) -> None:
        """Put the ranges into their targets; every block is checked before it is copied from.

        Raises:
            CorruptCheckpoint: as `check`; some targets are filled then.
        """
        self._visit(list(wanted))

    def verify(self) -> None:
        """Check every byte of every shard, and of the parity file.

        Raises:
            CorruptCheckpoint: one is not what was written.
        """
        parity = self.manifest.parity
        for records in (self.manifest.shards, [parity] if parity else []):
            _in_threads(self._verify_window, _windows(records))

    def _visit(self, wanted: Sequence[Wanted]) -> None:
        self._require(wanted)
        _in_threads(partial(self._visit_window, wanted), _windows(self.manifest.shards))

    def _visit_window(
        self, wanted: Sequence[Wanted], number: int, record: ShardRecord, low: int
    ) -> None:
        parts = sorted(
            self._parts(number, wanted, low, low + WINDOW_BYTES), key=lambda part: part[0]
        )
        if parts:
            with closing(ShardReader(self.folder, record)) as shard:
                for first_byte, num_bytes, target in parts:
                    if target is None:
                        shard.check(first_byte, num_bytes)
                    else:
                        shard.read_into(first_byte, target)

    def _verify_window(self, _: int, record: ShardRecord, low: int) -> None:
        with closing(ShardReader(self.folder, record)) as shard:
            shard.check(low, min(WINDOW_BYTES, record.bytes - low))

    def _parts(
        self, number: int, wanted: Iterable[Wanted], low: int = 0, high: int | None = None
    ) -> Iterator[tuple[int, int, memoryview | None]]:
        """What lies in bytes [low, high) of a shard: first byte, how many, where they go."""
        ranges = self._ranges[number]
        for one in wanted:
            place = ranges.get(one.name)
            if place is None:
                continue
            start, stop, first_byte = place
            begin = first_byte + 4 * (max(start, one.start) - start)
            end = first_byte + 4 * (min(stop, one.stop) - start)
            offset = first_byte + 4 * (one.start - start)  # of the range, were it all in this shard
            begin, end = max(begin, low), end if high is None else min(end, high)
            if begin < end:
                target = None
                if one.target is not None:
                    target = one.target.data.cast("B")[begin - offset : end - offset]
                yield begin, end - begin, target

    def _require(self, wanted: Iterable[Wanted]) -> None:
        """Raise CorruptCheckpoint where the shards do not hold all of a range."""
        for one in wanted:
            places = (ranges[one.name] for ranges in self._ranges if one.name in ranges)
            found = sum(
                max(0, min(stop, one.stop) - max(start, one.start)) for start, stop, _ in places
            )
            if found != one.stop - one.start:
                raise CorruptCheckpoint(
                    f"{self.folder}: {one.name} holds {found} of the elements "
                    f"{one.start} to {one.stop}"
                )

    def _shard(self, number: int) -> ShardReader:
        if number not in self._open_shards:
            if len(self._open_shards) == MAX_OPEN_SHARDS:
                self._open_shards.pop(next(iter(self._open_shards))).close()
            self._open_shards[number] = ShardReader(self.folder, self.manifest.shards[number])
        return self._open_shards[number]

    def _ranges_of(self, number: int) -> dict[str, list[int]]:
        """From the manifest; of a shard of format version 1 from its header."""
        ranges = self.manifest.shards[number].ranges
        if ranges is None:
            return {name: list(place) for name, *place in self._shard(number).ranges()}
        return ranges


def _windows(records: Sequence[ShardRecord]) -> Iterator[tuple[int, ShardRecord, int]]:
    """Number, record and first byte of every window of the files."""
    for number, record in enumerate(records):
        for low in range(0, record.bytes, WINDOW_BYTES):
            yield number, record, low


def _in_threads(
    work: Callable[[int, ShardRecord, int], None], windows: Iterable[tuple[int, ShardRecord, int]]
) -> None:
    """Do `work` on every window; the first error cancels what has not begun."""
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="checkpoint reading") as pool:
        for _ in pool.map(lambda window: work(*window), windows):
            pass


def differences(one: Path, other: Path) -> list[str]:
    """Where two checkpoints differ, in words; empty is identical.

    Named are parameters, how many elements, and the largest difference. How they are sharded does
    not count. Raises CorruptCheckpoint if one does not verify.
    """
    found = []
    with CheckpointReader(one) as a, CheckpointReader(other) as b:
        if a.manifest.step != b.manifest.step:
            found.append(f"step: {a.manifest.step} and {b.manifest.step}")
        names = list(a.manifest.parameters)
        for name in sorted({*names, *b.manifest.parameters}):
            shapes = a.manifest.parameters.get(name), b.manifest.parameters.get(name)
            if shapes[0] != shapes[1]:
                found.append(f"{name}: shape {shapes[0]} and {shapes[1]}")
                continue
            for kind in KINDS:
                mine, theirs = a.read_whole(name, kind), b.read_whole(name, kind)
                # Bits, not values: 0.0 and -0.0 differ, two equal NaNs do not.
                unequal = mine.view(np.uint32) != theirs.view(np.uint32)
                if unequal.any():
                    largest = float(np.abs(mine[unequal] - theirs[unequal]).max())
                    found.append(
                        f"{name}/{kind}: {int(unequal.sum())} of {mine.size} elements differ, "
                        f"at most by {largest:.3g}"
                    )
    return found
