"""Checkpoints that no run has saved: averages and imports. One process, bounded memory.

Their folder may have any name. Their state.json has no position to go on from, but says how they
came about:

    step            of the newest source, or what the foreign folder says
    origin          {"kind": "average" | "hf" | "deepspeed", ...}
    moments         "saved", or "zero": nobody's, so that nobody goes on with them
    config          of the run that they come from, or null
    corpus_fingerprint, tokenizer_sha256      where known, else null

tokenizer.json lies beside them where it came with the source.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from electra_dist.checkpoint.layout import (
    FORMAT_VERSION,
    KINDS,
    Manifest,
    ShardRecord,
    checkpoints_folder,
    manifest_text,
    read_manifest,
    read_state,
    shard_name,
    uncovered,
)
from electra_dist.checkpoint.shard import FloatArray, Piece, verify_shard, write_shard
from electra_dist.errors import UserError
from electra_dist.runtime.files import fsync_folder, write_bytes_atomic

SHARD_BYTES = 256 << 20
"""A shard is written as soon as this much is collected: memory stays under it plus one tensor."""
STATE_VERSION = 1


def made_state(
    *,
    step: int,
    origin: Mapping[str, Any],
    has_moments: bool,
    config: Mapping[str, Any] | None,
    config_fingerprint: str | None = None,
    corpus_fingerprint: str | None = None,
    tokenizer_sha256: str | None = None,
) -> dict[str, Any]:
    """What state.json of such a checkpoint holds."""
    return {
        "format_version": STATE_VERSION,
        "step": step,
        "origin": dict(origin),
        "moments": "saved" if has_moments else "zero",
        "config": config,
        "config_fingerprint": config_fingerprint,
        "corpus_fingerprint": corpus_fingerprint,
        "tokenizer_sha256": tokenizer_sha256,
    }


def check_out(out: Path) -> None:
    """Refuse a place for such a checkpoint before any work is done.

    Raises:
        UserError: something is there, or a run would take it for its own.
    """
    if out.exists():
        raise UserError(f"--out {out} exists already; remove it or give another folder")
    if out.absolute().parent.name == checkpoints_folder(Path()).name:
        raise UserError(
            f"--out {out} lies among the checkpoints of a run, which could go on from it; "
            "give a folder elsewhere"
        )


def write_checkpoint(
    out: Path,
    shapes: Mapping[str, Sequence[int]],
    pieces: Iterable[Piece],
    state: dict[str, Any],
    tokenizer: bytes | None = None,
) -> Path:
    """Write `pieces` as they come to the new checkpoint `out`: whole, verified, or not there.

    Args:
        out: its folder.
        shapes: of every parameter.
        pieces: every element of every parameter and kind, once; of a tensor in order.
        state: for state.json.
        tokenizer: content of a tokenizer.json to keep beside.

    Raises:
        UserError: `out` can't be used.
        OSError: the disk did not take it.
    """
    check_out(out)
    temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        records = [_write(temporary, n, batch) for n, batch in enumerate(_batches(pieces))]
        parameters = {name: list(shape) for name, shape in shapes.items()}
        ranges = [
            (name, start, stop)
            for record in records
            for name, (start, stop, _) in (record.ranges or {}).items()
        ]
        problems = uncovered(parameters, ranges)
        assert not problems, problems[0]
        if tokenizer is not None:
            write_bytes_atomic(temporary / "tokenizer.json", tokenizer)
            state = {**state, "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest()}
        text = (json.dumps(state, indent=2) + "\n").encode()
        write_bytes_atomic(temporary / "state.json", text)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            step=state["step"],
            parameters=parameters,
            shards=records,
            state_xxh3_128=xxhash.xxh3_128_hexdigest(text),
        )
        write_bytes_atomic(temporary / "manifest.json", manifest_text(manifest).encode())
        read_state(temporary, read_manifest(temporary))
        os.rename(temporary, out)
        fsync_folder(out.parent)
    except BaseException:  # Ctrl-C too: nothing of it stays
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return out


def zero_moments(name: str, values: FloatArray) -> Iterator[Piece]:
    """A parameter's weights, and zeros for its moments: what a fresh optimizer has."""
    flat = np.ascontiguousarray(values, dtype="<f4").reshape(-1)
    yield Piece(f"{name}/master", 0, flat)
    for kind in KINDS[1:]:
        yield Piece(f"{name}/{kind}", 0, np.zeros_like(flat))


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces of about SHARD_BYTES together, no two of one tensor."""
    batch: list[Piece] = []
    names: set[str] = set()
    num_bytes = 0
    for piece in pieces:
        if batch and (num_bytes >= SHARD_BYTES or piece.name in names):
            yield batch
            batch, names, num_bytes = [], set(), 0
        batch.append(piece)
        names.add(piece.name)
        num_bytes += piece.values.nbytes
    if batch:
        yield batch


def _write(folder: Path, number: int, pieces: list[Piece]) -> ShardRecord:
    record = write_shard(folder / shard_name(number), pieces)
    verify_shard(folder, record)
    return record
