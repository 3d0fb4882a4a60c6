"""Reading a checkpoint at any world size and ZeRO stage: the ranges that are asked for, checked."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from electra_dist.checkpoint.layout import KINDS, CorruptCheckpoint, read_manifest, read_state
from electra_dist.checkpoint.shard import FloatArray, Range, ShardReader


class _Source(NamedTuple):
    start: int
    stop: int
    shard: int
    first_byte: int


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
        self._sources: dict[str, list[_Source]] = {}
        try:
            for number in range(len(self.manifest.shards)):
                for name, start, stop, first_byte in self._ranges(number):
                    source = _Source(start, stop, number, first_byte)
                    self._sources.setdefault(name, []).append(source)
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
        target = values.data.cast("B") if len(values) else memoryview(b"")
        filled = 0
        for source in self._sources.get(f"{parameter}/{kind}", []):
            low, high = max(start, source.start), min(stop, source.stop)
            if low < high:
                first_byte = source.first_byte + 4 * (low - source.start)
                self._shard(source.shard).read_into(
                    first_byte, target[4 * (low - start) : 4 * (high - start)]
                )
                filled += high - low
        if filled != stop - start:
            raise CorruptCheckpoint(
                f"{self.folder}: {parameter}/{kind} holds {filled} of the elements "
                f"{start} to {stop}"
            )
        return values

    def read_whole(self, parameter: str, kind: str = "master") -> FloatArray:
        """A whole tensor in its shape."""
        shape = self.manifest.parameters[parameter]
        return self.read_range(parameter, kind, 0, math.prod(shape)).reshape(shape)

    def verify(self) -> None:
        """Check every byte of every shard, and of the parity file.

        Raises:
            CorruptCheckpoint: one is not what was written.
        """
        for number in range(len(self.manifest.shards)):
            self._shard(number).verify()
        if self.manifest.parity is not None:
            with closing(ShardReader(self.folder, self.manifest.parity)) as parity:
                parity.verify()

    def _shard(self, number: int) -> ShardReader:
        if number not in self._open_shards:
            self._open_shards[number] = ShardReader(self.folder, self.manifest.shards[number])
        return self._open_shards[number]

    def _ranges(self, number: int) -> list[Range]:
        """From the manifest; of a shard of format version 1 from its header."""
        ranges = self.manifest.shards[number].ranges
        if ranges is None:
            return self._shard(number).ranges()
        return [Range(name, *place) for name, place in ranges.items()]


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
