"""Packing a corpus: the rows of one length and mode, written beside the tokens that they share.

Any number of packings lie over one token store; what a row is, says examples.py. Shards are packed
in parallel processes, each a function of itself and of the seed, so the bytes are the same for any
number of them.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from electra_dist.data.examples import SHORTEST_TARGET, pack_blocks, pack_shard, used_lengths
from electra_dist.data.pool import spawned_pool
from electra_dist.data.store import (
    EXAMPLE_FILE_PREFIX,
    FORMAT_VERSION,
    PACKING_MODES,
    SPLITS,
    Corpus,
    Examples,
    PackedExamples,
    commit_folder,
    fingerprint_of,
    packing_folder,
    read_manifest,
    write_arrays,
    write_json,
)
from electra_dist.errors import UserError
from electra_dist.runtime.progress import Progress

MAX_LENGTH = 65535  # lengths of segments and blocks are stored as uint16

TOKENS_PER_PROCESS = 8 << 20
"""Another process starts in about the time in which so many tokens are packed."""

Report = Callable[[Progress], None]
"""Called after each token file with how far the packing is."""


def pack(
    corpus_folder: str | Path,
    length: int,
    mode: str = "full",
    seed: int = 0,
    *,
    num_workers: int = 1,
    report: Report | None = None,
) -> Path:
    """Packs a corpus into rows of at most `length` tokens; returns its `pack_<length>_<mode>`.

    A packing that is already there with the same seed and corpus is left as it is. With
    num_workers > 1 the calling script needs the `if __name__ == "__main__"` guard (workers are
    spawned). Raises UserError for a length or mode that cannot be, and when another packing is in
    the way.
    """
    if not SHORTEST_TARGET <= length <= MAX_LENGTH:
        raise UserError(
            f"--length {length} is out of range: use {SHORTEST_TARGET} to {MAX_LENGTH} tokens"
        )
    if mode not in PACKING_MODES:
        raise UserError(f"--mode {mode!r} is unknown: use one of {', '.join(PACKING_MODES)}")
    if seed < 0:
        raise UserError(f"--seed {seed} is negative: use 0 or more")
    if num_workers < 1:
        raise UserError(f"--workers {num_workers} must be at least 1")
    corpus = Corpus.open(corpus_folder)
    folder = packing_folder(corpus.folder, length, mode)
    if folder.exists():
        _check_same(folder, corpus, seed)
        return folder
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    tasks = [
        _Task(corpus.folder, building, split, number, length, mode, seed)
        for split in SPLITS
        for number in range(len(corpus.manifest["splits"][split]["shards"]))
    ]
    sizes = [int(corpus.records(task.split)[task.number]["bytes"]) for task in tasks]
    records: list[_Packed] = []
    for packed in _pack_all(tasks, num_workers, corpus):
        records.append(packed)
        if report is not None:
            report(
                Progress(
                    phase="packing",
                    num_bytes=sum(sizes[: len(records)]),
                    total_bytes=sum(sizes),
                    num_tokens=sum(p.tokens for p in records),
                )
            )
    write_json(building / "manifest.json", _manifest(corpus, length, mode, seed, records))
    commit_folder(building, folder)
    return folder


@dataclass(frozen=True)
class _Task:
    """One shard to be packed, with all that decides the result."""

    corpus_folder: Path
    building: Path
    split: str
    number: int
    length: int
    mode: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """What came of it."""

    record: dict[str, Any]
    """Of the file, for the manifest."""
    split: str
    tokens: int
    two_segment: int
    """Rows of two segments."""
    short: int
    """Rows with padding."""
    used: int
    """Positions of all rows that are no padding."""
    blocks: int


def _pack_all(tasks: list[_Task], num_workers: int, corpus: Corpus) -> Iterator[_Packed]:
    """The results in the order of the tasks."""
    num_tokens = sum(int(corpus.manifest["splits"][split]["tokens"]) for split in SPLITS)
    num_workers = min(num_workers, len(tasks), 1 + num_tokens // TOKENS_PER_PROCESS)
    if num_workers == 1:
        yield from map(_pack_one, tasks)
        return
    with spawned_pool(num_workers) as executor:
        yield from executor.map(_pack_one, tasks)


def _pack_one(task: _Task) -> _Packed:
    """Writes the rows of one shard."""
    shard = Corpus.open(task.corpus_folder).shards(task.split)[task.number]
    key = (task.seed, SPLITS.index(task.split), task.number)
    examples = (
        pack_blocks(shard, task.length)
        if task.mode == "packed"
        else pack_shard(shard, key, task.length, task.mode)
    )
    name = f"{EXAMPLE_FILE_PREFIX[task.split]}_{task.number:05d}.safetensors"
    arrays = {field: getattr(examples, field) for field in examples.__dataclass_fields__}
    record = write_arrays(task.building / name, arrays)
    used_E = used_lengths(examples)
    return _Packed(
        record={"split": task.split, "examples": len(used_E), **asdict(record)},
        split=task.split,
        tokens=len(shard.tokens),
        two_segment=int((examples.length_b > 0).sum()) if isinstance(examples, Examples) else 0,
        short=int((used_E < task.length).sum()),
        used=int(used_E.sum()),
        blocks=len(examples.block_lengths) if isinstance(examples, PackedExamples) else 0,
    )


def _manifest(
    corpus: Corpus, length: int, mode: str, seed: int, packed: list[_Packed]
) -> dict[str, Any]:
    files = [one.record for one in packed]
    num_rows = {
        split: sum(record["examples"] for record in files if record["split"] == split)
        for split in SPLITS
    }
    train = [one for one in packed if one.split == "train"]
    num_train = max(1, num_rows["train"])
    content = [corpus.fingerprint, f"length {length}", f"mode {mode}", f"seed {seed}"]
    return {
        "format_version": FORMAT_VERSION,
        "length": length,
        "mode": mode,
        "seed": seed,
        "corpus_fingerprint": corpus.fingerprint,
        "fingerprint": fingerprint_of(
            content + sorted(f"{f['file']} {f['xxh3_128']}" for f in files)
        ),
        "num_examples": num_rows["train"],
        "held_out_examples": num_rows["held_out"],
        "two_segment_share": sum(one.two_segment for one in train) / num_train,
        "short_sequence_share": sum(one.short for one in train) / num_train,
        "fill_share": sum(one.used for one in train) / (num_train * length),
        "mean_blocks": sum(one.blocks for one in train) / num_train,
        "files": files,
    }


def _check_same(folder: Path, corpus: Corpus, seed: int) -> None:
    manifest = read_manifest(folder, "packing", f"remove {folder} and pack again")
    found = (manifest["corpus_fingerprint"], manifest["seed"])
    if found != (corpus.fingerprint, seed):
        raise UserError(
            f"{folder} is packed with seed {found[1]} of corpus {found[0]}, wanted seed {seed}"
            f" of {corpus.fingerprint}: remove it first"
        )
