"""Which element ranges each rank of each ZeRO stage holds, by the rules of DeepSpeed 0.19.

Arithmetic only, so that unit tests can sweep all layouts; that real engines hold just these ranges
is shown by `tests/distributed/test_resharding.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import numpy as np
import xxhash

from electra_dist.checkpoint import layout
from electra_dist.checkpoint.layout import KINDS, Manifest
from electra_dist.checkpoint.shard import Piece, write_shard

STAGES = range(4)
WORLD_SIZES = range(1, 5)
CASES = list(product(STAGES, WORLD_SIZES))

Shapes = Mapping[str, tuple[int, ...]]
Range = tuple[str, int, int]
"""Parameter, first element, one past the last."""


def is_plain(parameter: str) -> bool:
    """Without weight decay: the second parameter group."""
    return parameter.endswith("bias") or "layer_norm" in parameter


def owned(shapes: Shapes, stage: int, world_size: int, rank: int) -> list[Range]:
    """What the rank saves, in the order of the parameters; empty ranges are left out."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if stage in (1, 2):
        ranges = _flat(sizes, world_size, rank)
    else:
        ranges = {}
        for name, size in sizes.items():
            piece = math.ceil(size / world_size)
            ranges[name] = (min(rank * piece, size), min((rank + 1) * piece, size))
    return [(n, *ranges[n]) for n in sizes if n in ranges and ranges[n][0] < ranges[n][1]]


def local(shapes: Shapes, stage: int, world_size: int, rank: int) -> list[Range]:
    """What the rank holds, and a restore must fill: all of it at stage 0."""
    if stage == 0:
        return [(name, 0, math.prod(shape)) for name, shape in shapes.items()]
    return owned(shapes, stage, world_size, rank)


def _flat(sizes: Mapping[str, int], world_size: int, rank: int) -> dict[str, tuple[int, int]]:
    """Stages 1 and 2: each group laid out in a row, padded to 2 W elements, cut into W parts."""
    found = {}
    for group in (False, True):
        names = [name for name in sizes if is_plain(name) == group]
        total = sum(sizes[name] for name in names)
        part = math.ceil(total / (2 * world_size)) * 2
        offset = 0
        for name in names:
            low, high = max(rank * part, offset), min((rank + 1) * part, offset + sizes[name])
            if low < high:
                found[name] = (low - offset, high - offset)
            offset += sizes[name]
    return found


def some_state(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """`<parameter>/<kind>` to a flat array of random bits: NaNs, infinities and all."""
    rng = np.random.default_rng(seed)
    return {
        f"{name}/{kind}": rng.integers(0, 2**32, math.prod(shape), np.uint32).view(np.float32)
        for name, shape in shapes.items()
        for kind in KINDS
    }


def pieces(state: Mapping[str, np.ndarray], ranges: list[Range]) -> Iterator[Piece]:
    """The ranges of all three kinds, as an engine hands them out."""
    for name, start, stop in ranges:
        for kind in KINDS:
            yield Piece(f"{name}/{kind}", start, state[f"{name}/{kind}"][start:stop])


def write(
    folder: Path, state: Mapping[str, np.ndarray], shapes: Shapes, stage: int, world_size: int
) -> Path:
    """The checkpoint that `world_size` ranks at `stage` write."""
    folder.mkdir(parents=True)
    records = [
        write_shard(
            folder / layout.shard_name(rank),
            list(pieces(state, owned(shapes, stage, world_size, rank))),
        )
        for rank in range(world_size)
    ]
    (folder / "state.json").write_bytes(b"{}")
    manifest = Manifest(
        format_version=layout.FORMAT_VERSION,
        step=layout.step_of(folder) if folder.name.startswith("step_") else 1,
        parameters={name: list(shape) for name, shape in shapes.items()},
        shards=records,
        state_xxh3_128=xxhash.xxh3_128_hexdigest(b"{}"),
    )
    (folder / "manifest.json").write_text(layout.manifest_text(manifest))
    return folder
