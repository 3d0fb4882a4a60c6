"""What a saved run is: names, the manifest, and which folders count.

No torch, no numpy: login nodes read this.

    checkpoints/step_00001000/
        manifest.json               written last; a folder without it is not a checkpoint
        state.json                  step, position, fingerprints
        shard_00000.safetensors     element ranges `<parameter>/<kind>`, global offsets in metadata
    checkpoints/step_00001000.tmp-2     being written by attempt 2, or left by its crash
    checkpoints/step_00001000.bad       did not verify; kept aside
    checkpoints/step_00001000.abandoned superseded by a roll-back

No rank, world size or ZeRO stage stands in it: shards hold ranges of named parameters, and a reader
at any world size takes the ranges that it needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from electra_dist.errors import UserError

FORMAT_VERSION = 1
BLOCK_BYTES = 1 << 20
"""Unit of hashing: a reader checks the whole blocks that cover its range."""
KINDS = ("master", "exp_avg", "exp_avg_sq")
"""fp32 weights and Adam's two moments: every parameter has all three."""

_COMPLETE = re.compile(r"step_(\d{8,})")
_TEMPORARY = re.compile(r"step_\d{8,}\.tmp-\d+")


class CorruptCheckpoint(Exception):
    """A file of a checkpoint is missing, cut short, or not what was written."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One file of element ranges."""

    file: str
    bytes: int
    block_hashes: list[str]
    """xxh3-64 of each MiB, header included, hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole of a checkpoint in one value; its own checksum is written with it."""

    format_version: int
    step: int
    parameters: dict[str, list[int]]
    """Shape of every parameter by name."""
    shards: list[ShardRecord]
    state_xxh3_128: str
    """Hash of state.json."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """A complete checkpoint on disk, not yet verified."""

    step: int
    folder: Path


def checkpoints_folder(run_folder: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_folder / "checkpoints"


def step_name(step: int) -> str:
    """`step_00001000`."""
    return f"step_{step:08d}"


def shard_name(rank: int) -> str:
    """`shard_00003.safetensors`."""
    return f"shard_{rank:05d}.safetensors"


def list_checkpoints(run_folder: Path) -> list[CheckpointInfo]:
    """Complete checkpoints, oldest first; temporaries and what was set aside do not count."""
    folder = checkpoints_folder(run_folder)
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _COMPLETE.fullmatch(path.name)
        if match and (path / "manifest.json").is_file():
            found.append(CheckpointInfo(step=int(match.group(1)), folder=path))
    return sorted(found, key=lambda info: info.step)


def list_temporaries(run_folder: Path) -> list[Path]:
    """What crashed saves left behind."""
    folder = checkpoints_folder(run_folder)
    return [p for p in folder.iterdir() if _TEMPORARY.fullmatch(p.name)] if folder.is_dir() else []


def resolve(path: Path) -> CheckpointInfo:
    """The checkpoint that a user means: the folder itself, or the newest one of a run folder.

    Raises:
        UserError: neither is there.
    """
    if (path / "manifest.json").is_file() and _COMPLETE.fullmatch(path.name.split(".")[0]):
        return CheckpointInfo(step=int(path.name.split(".")[0].removeprefix("step_")), folder=path)
    complete = list_checkpoints(path)
    if not complete:
        raise UserError(
            f"{path} is neither a complete checkpoint nor a run folder that holds one; "
            "give RUN or RUN/checkpoints/step_XXXXXXXX"
        )
    return complete[-1]


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON with its own checksum."""
    body = asdict(manifest)
    return json.dumps({**body, "checksum": _checksum(body)}, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json.

    Raises:
        CorruptCheckpoint: it is missing, damaged, or its checksum differs.
        UserError: a newer version of electra_dist wrote it.
    """
    path = folder / "manifest.json"
    try:
        body: dict[str, Any] = json.loads(path.read_bytes())
        checksum = body.pop("checksum")
        version = body["format_version"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(f"{path} cannot be read ({error})") from None
    if checksum != _checksum(body):
        raise CorruptCheckpoint(f"{path} is damaged: its checksum differs")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this electra_dist reads up to {FORMAT_VERSION}; "
            "install a newer one"
        )
    shards = [ShardRecord(**shard) for shard in body.pop("shards")]
    return Manifest(**body, shards=shards)


def read_state(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Read state.json and check it against the manifest.

    Raises:
        CorruptCheckpoint: it is missing or not what was written.
    """
    path = folder / "state.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptCheckpoint(f"{path} cannot be read ({error})") from None
    if xxhash.xxh3_128_hexdigest(data) != manifest.state_xxh3_128:
        raise CorruptCheckpoint(f"{path} is damaged: its hash differs from the manifest's")
    state: dict[str, Any] = json.loads(data)
    return state


def uncovered(
    parameters: dict[str, list[int]], ranges: Iterable[tuple[str, int, int]]
) -> list[str]:
    """Which tensors the shards do not cover exactly once, in words; empty is good.

    Args:
        parameters: shapes by name.
        ranges: (tensor name `<parameter>/<kind>`, first element, one past the last) of all shards.
    """
    pieces: dict[str, list[tuple[int, int]]] = {}
    for name, start, stop in ranges:
        pieces.setdefault(name, []).append((start, stop))
    problems = []
    for parameter, shape in parameters.items():
        size = 1
        for length in shape:
            size *= length
        for kind in KINDS:
            end, is_twice = 0, False
            for start, stop in sorted(pieces.pop(f"{parameter}/{kind}", [])):
                is_twice = start < end
                if start != end:
                    break
                end = stop
            if is_twice:
                problems.append(f"{parameter}/{kind}: element {start} is there twice")
            elif end != size:
                problems.append(f"{parameter}/{kind}: {end} of {size} elements in a row")
    return problems + [f"{name}: not a parameter of this model" for name in pieces]


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
