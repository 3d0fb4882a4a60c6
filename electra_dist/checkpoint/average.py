"""The average of several checkpoints' weights, in float64, one tensor in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from electra_dist.checkpoint.layout import (
    CheckpointInfo,
    CorruptCheckpoint,
    list_checkpoints,
    resolve,
    run_folder_of,
)
from electra_dist.checkpoint.made import check_out, made_state, write_checkpoint, zero_moments
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.checkpoint.shard import FloatArray, Piece
from electra_dist.config import files
from electra_dist.errors import UserError

_CHUNK = 1 << 22
"""Elements that are added up at a time: 32 MiB in float64."""


def sources_of(paths: Sequence[Path], last: int | None) -> list[CheckpointInfo]:
    """The checkpoints to average, oldest first: a run's, its `last` ones, or those named.

    Raises:
        UserError: fewer than two, or fewer than `last`.
    """
    if last is not None and last < 2:
        raise UserError(f"--last {last} must be at least 2, or there is nothing to average")
    if len(paths) == 1 and (found := list_checkpoints(paths[0])):
        if last is not None and last > len(found):
            raise UserError(
                f"--last {last}: {paths[0]} holds {len(found)} complete checkpoints; give at most "
                "that many, and a larger checkpoint.keep_last to the next run"
            )
        found = found[-last:] if last is not None else found
    elif last is not None:
        raise UserError(f"--last {last} goes with one run folder; leave it out or give one RUN")
    else:
        found = [resolve(path) for path in paths]
    if len(found) < 2:
        raise UserError(
            f"one checkpoint ({found[0].folder}) has no average; give a run that holds several, or "
            "several checkpoints"
        )
    return found


def average_weights(num_sources: int, decay: float | None) -> list[float]:
    """How much each source counts, oldest first: the same, or as in an exponential moving average.

    With decay d: a <- d a + (1 - d) x from one source to the next, beginning at the oldest itself.
    """
    if decay is None:
        return [1.0] * num_sources
    if not 0.0 < decay < 1.0:
        raise UserError(f"--ema {decay:g} must lie between 0 and 1; 0.5 to 0.9 is usual for a few")
    newer = [(1.0 - decay) * decay ** (num_sources - 1 - i) for i in range(1, num_sources)]
    return [decay ** (num_sources - 1), *newer]


def average(sources: Sequence[CheckpointInfo], out: Path, decay: float | None = None) -> Path:
    """Write the average of the sources' weights to the new checkpoint `out`.

    The sum is taken in float64 and rounded once. Moments are zero: the average is a point that no
    optimizer has been at, so it is for export, fine-tuning and a fresh start (`--init-from`).

    Raises:
        UserError: the sources hold different models, or one does not verify.
    """
    check_out(out)
    weights = average_weights(len(sources), decay)
    try:
        with ExitStack() as stack:
            readers = [stack.enter_context(CheckpointReader(info.folder)) for info in sources]
            shapes = readers[-1].manifest.parameters
            for reader in readers:
                _check_same_model(reader, readers[-1])
            return write_checkpoint(
                out,
                shapes,
                _pieces(readers, weights),
                _state(readers, weights, decay),
                _tokenizer(sources[-1].folder),
            )
    except CorruptCheckpoint as error:
        raise UserError(f"{error}; average checkpoints that verify") from None


def _pieces(readers: Sequence[CheckpointReader], weights: Sequence[float]) -> Iterator[Piece]:
    for name, shape in readers[-1].manifest.parameters.items():
        yield from zero_moments(name, _mean(readers, weights, name, math.prod(shape)))


def _mean(
    readers: Sequence[CheckpointReader], weights: Sequence[float], name: str, size: int
) -> FloatArray:
    mean = np.empty(size, dtype="<f4")
    for start in range(0, size, _CHUNK):
        stop = min(start + _CHUNK, size)
        total = np.zeros(stop - start)
        for reader, weight in zip(readers, weights, strict=True):
            total += weight * reader.read_range(name, "master", start, stop).astype(np.float64)
        mean[start:stop] = total / math.fsum(weights)
    return mean


def _check_same_model(one: CheckpointReader, other: CheckpointReader) -> None:
    mine, theirs = one.manifest.parameters, other.manifest.parameters
    for name in sorted({*mine, *theirs}):
        if mine.get(name) != theirs.get(name):
            raise UserError(
                f"{one.folder} and {other.folder} hold different models: {name} has shape "
                f"{mine.get(name)} and {theirs.get(name)}; average checkpoints of one model"
            )
    known = {r.state.get("tokenizer_sha256") for r in (one, other)} - {None}
    if len(known) > 1:
        raise UserError(
            f"{one.folder} and {other.folder} were trained with different tokenizers; average "
            "checkpoints of one vocabulary"
        )


def _state(
    readers: Sequence[CheckpointReader], weights: Sequence[float], decay: float | None
) -> dict[str, Any]:
    newest = readers[-1].state
    run = run_folder_of(readers[-1].folder)
    config = newest.get("config")
    if run is not None:
        config = asdict(files.read_json(run / "config.json"))
    origin = {
        "kind": "average",
        "ema_decay": decay,
        "sources": [
            {
                "folder": str(reader.folder.resolve()),
                "step": reader.manifest.step,
                "share": weight / math.fsum(weights),
                "state_xxh3_128": reader.manifest.state_xxh3_128,
            }
            for reader, weight in zip(readers, weights, strict=True)
        ],
    }
    return made_state(
        step=readers[-1].manifest.step,
        origin=origin,
        has_moments=False,
        config=config,
        **{
            key: newest.get(key)
            for key in ("config_fingerprint", "corpus_fingerprint", "tokenizer_sha256")
        },
    )


def _tokenizer(folder: Path) -> bytes | None:
    path = folder / "tokenizer.json"
    return path.read_bytes() if path.is_file() else None
