"""What a saved run is: names, the manifest, and which folders count.

No torch, no numpy: login nodes read this.

    checkpoints/step_00001000/
        manifest.json               written last; a folder without it is not a checkpoint
        state.json                  step, position, fingerprints
        shard_00000.safetensors     element ranges `<parameter>/<kind>`, global offsets in metadata
        parity.xor                  where checkpoint.parity is on: rebuilds one lost shard
    checkpoints/step_00001000.tmp-2     being written by attempt 2, or left by its crash
    checkpoints/step_00001000.bad       did not verify; kept aside
    checkpoints/step_00001000.abandoned superseded by a roll-back

No rank, world size or ZeRO stage stands in it: shards hold ranges of named parameters, and a reader
at any world size takes the ranges that it needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from electra_dist.errors import UserError
from electra_dist.runtime.retry import Retry, may_pass, retrying

FORMAT_VERSION = 2
"""1: the ranges of a shard stand in its header only. 2: in the manifest too."""
BLOCK_BYTES = 1 << 20
"""Unit of hashing: a reader checks the whole blocks that cover its range."""
KINDS = ("master", "exp_avg", "exp_avg_sq")
"""fp32 weights and Adam's two moments: every parameter has all three."""

RETRY = Retry(num_attempts=4, first_delay_seconds=0.4)
"""For a file that exists and that the system fails to read: 3 to 6 seconds in all."""

Answer = TypeVar("Answer")

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
    ranges: dict[str, list[int]] | None = None
    """`<parameter>/<kind>` to [first element, one past the last, offset of the first in the file].
    None in format version 1: they stand in the shard's header."""


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
    parity: ShardRecord | None = None
    """The file from which a lost shard can be rebuilt, where there is one."""

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


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint, whatever suffix it has."""
    return int(folder.name.split(".")[0].removeprefix("step_"))


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
        return CheckpointInfo(step=step_of(path), folder=path)
    if is_made(path):
        return CheckpointInfo(step=_step_in_manifest(path), folder=path)
    complete = list_checkpoints(path)
    if not complete:
        raise UserError(
            f"{path} is neither a complete checkpoint nor a run folder that holds one; "
            "give RUN or RUN/checkpoints/step_XXXXXXXX"
        )
    return complete[-1]


def is_made(path: Path) -> bool:
    """Whether this is a checkpoint under a name of its own: an average or an import."""
    # A corpus has a manifest.json too, but no state.json.
    return all((path / name).is_file() for name in ("manifest.json", "state.json"))


def run_folder_of(folder: Path) -> Path | None:
    """The run that a checkpoint lies in; None for one that was moved, averaged or imported."""
    run = folder.resolve().parent.parent
    in_run = folder.resolve().parent == checkpoints_folder(run)
    return run if in_run and (run / "config.json").is_file() else None


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON with its own checksum, in the one form that `read_manifest` takes."""
    body = asdict(manifest)
    return _canonical({**body, "checksum": _checksum(body)})


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json.

    Raises:
        CorruptCheckpoint: it is missing, damaged, or its checksum differs.
        UserError: a newer version of electra_dist wrote it.
    """
    path = folder / "manifest.json"
    data = patiently(path.read_bytes, path)
    try:
        body: dict[str, Any] = json.loads(data)
        is_canonical = _canonical(body).encode() == data
        checksum = body.pop("checksum")
        version = body["format_version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(f"{path} cannot be read ({error})") from None
    # Version 1 was indented: there the values alone are checked, not how they are spelt.
    if checksum != _checksum(body) or not (is_canonical or version == 1):
        raise CorruptCheckpoint(f"{path} is damaged: its checksum differs")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this electra_dist reads up to {FORMAT_VERSION}; "
            "install a newer one"
        )
    shards = [ShardRecord(**shard) for shard in body.pop("shards")]
    parity = body.pop("parity", None)  # none in format version 1
    parity = ShardRecord(**parity) if parity else None
    return Manifest(**body, shards=shards, parity=parity)


def read_state(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Read state.json and check it against the manifest.

    Raises:
        CorruptCheckpoint: it is missing or not what was written.
    """
    path = folder / "state.json"
    data = patiently(path.read_bytes, path)
    if xxhash.xxh3_128_hexdigest(data) != manifest.state_xxh3_128:
        raise CorruptCheckpoint(f"{path} is damaged: its hash differs from the manifest's")
    state: dict[str, Any] = json.loads(data)
    return state


def shard_header(spans: Sequence[tuple[str, int, int]]) -> tuple[bytes, dict[str, list[int]]]:
    """The first bytes of a shard, and the ranges of its `ShardRecord`.

    Args:
        spans: (`<parameter>/<kind>`, first element, one past the last), in the order of the file.
    """
    entries: dict[str, object] = {}
    ranges: dict[str, list[int]] = {}
    offset = 0
    for name, start, stop in spans:
        size = 4 * (stop - start)
        entries[name] = {
            "dtype": "F32",
            "shape": [stop - start],
            "data_offsets": [offset, offset + size],
        }
        assert name not in ranges, f"{name}: a shard holds one range of a tensor"
        ranges[name] = [start, stop]
        offset += size
    text = json.dumps({"__metadata__": {"ranges": json.dumps(ranges)}, **entries}).encode()
    text += b" " * (-len(text) % 8)  # data starts on 8 bytes, as the format asks
    first_byte = 8 + len(text)
    for name, start, stop in spans:
        ranges[name].append(first_byte)
        first_byte += 4 * (stop - start)
    return len(text).to_bytes(8, "little") + text, ranges


def patiently(read: Callable[[], Answer], path: Path) -> Answer:
    """What `read` returns; a passing error (EIO, a stale NFS handle) is tried again a few times.

    Raises:
        CorruptCheckpoint: the file is not there, or the error does not pass.
    """
    try:
        return retrying(f"reading {path}", read, RETRY)
    except OSError as error:
        times = f", {RETRY.num_attempts} times" if may_pass(error) else ""
        raise CorruptCheckpoint(f"{path} cannot be read ({error.strerror}{times})") from None


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


def _step_in_manifest(folder: Path) -> int:
    """What manifest.json says, unchecked; 0 if it is damaged, which its reader will find."""
    try:
        return int(json.loads((folder / "manifest.json").read_bytes())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _canonical(value: Any) -> str:
    """JSON in one spelling, so that a flipped bit cannot hide in a blank or an escape."""
    return json.dumps(value) + "\n"


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
