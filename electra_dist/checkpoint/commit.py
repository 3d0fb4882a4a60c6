"""What the writer thread of a rank does with one save: its shard, and on rank 0 the commit.

The ranks meet in the folder alone, never in a collective:

    step_N.tmp-<attempt>/shard_k.safetensors            written, read back,
                         shard_k.safetensors.done.json  and then vouched for by rank k,
                         shard_k.safetensors.failed     or what went wrong
                         state.json, manifest.json      by rank 0, when all have vouched
    step_N/                                             one rename by rank 0
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from electra_dist.checkpoint.layout import (
    FORMAT_VERSION,
    CorruptCheckpoint,
    Manifest,
    ShardRecord,
    checkpoints_folder,
    list_checkpoints,
    list_temporaries,
    manifest_text,
    read_manifest,
    read_state,
    shard_name,
    step_name,
    step_of,
    uncovered,
)
from electra_dist.checkpoint.parity import write_parity
from electra_dist.checkpoint.shard import Piece, verify_shard, write_shard
from electra_dist.errors import Superseded
from electra_dist.runtime.attempt import Attempt, Events
from electra_dist.runtime.files import fsync_folder, write_bytes_atomic, write_json_atomic

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Save:
    """One save, as this rank has begun it."""

    serial: int
    """Saves begun in this attempt, on every rank the same."""
    step: int
    state: dict[str, Any]
    """For state.json."""
    parameter_shapes: dict[str, tuple[int, ...]]
    pieces: list[Piece]
    """What this rank owns, in memory that stays as it is until the save is done."""
    blocked_seconds: float | None
    """How long the training thread was held up for the copy; None: for the whole save."""


@dataclass(frozen=True, kw_only=True)
class Committer:
    """Carries out saves for one rank of one attempt."""

    attempt: Attempt
    rank: int
    world_size: int
    keep_last: int
    commit_timeout_seconds: float
    parity: bool
    before_write: Callable[[int], None] = lambda _: None
    """Called with the step before a shard is written; what it raises the write raises."""

    @property
    def _checkpoints(self) -> Path:
        return checkpoints_folder(self.attempt.run_folder)

    def carry_out(self, save: Save) -> bool:
        """Write this rank's shard; on rank 0 also wait for the others' and commit.

        Returns whether this rank's part is on the disk, on rank 0: whether the checkpoint is. A
        disk that does not take it is an event, and the older checkpoints stay.

        Raises:
            Superseded: a later attempt owns the run folder; nothing was committed.
        """
        started = time.monotonic()
        self.attempt.check_current()  # a node that was cut off and wakes up here writes nothing
        folder = self._checkpoints / f"{step_name(save.step)}.tmp-{self.attempt.number}"
        if self.rank == 0:
            self._remove_failed_saves(before=save.step)
        problem = self._write_own_shard(folder, save)
        if self.rank != 0:
            return problem is None
        try:
            if problem is None:
                self._commit(folder, save)
        except Superseded:
            raise
        except Exception as error:
            problem = words(error)
        if problem is not None:
            log.error("checkpoint of step %d was not saved: %s", save.step, problem)
            shutil.rmtree(folder, ignore_errors=True)  # first: the event may need the room
            self.record("save_failed", step=save.step, cause=problem)
            return False
        seconds = time.monotonic() - started
        blocked = seconds if save.blocked_seconds is None else save.blocked_seconds
        self.record(
            "save", step=save.step, seconds=round(seconds, 3), blocked_seconds=round(blocked, 3)
        )
        self._retire_old()
        return True

    def record(self, event: str, **details: Any) -> None:
        """An event in events.jsonl; a disk that is too full for it ends no run, the log has it."""
        try:
            Events(attempt=self.attempt, rank=self.rank).append(event, **details)
        except OSError as error:
            log.error("event %s %s could not be written: %s", event, details, error)

    def _write_own_shard(self, folder: Path, save: Save) -> str | None:
        """Write, read back, and say so in shard_k.done.json; in shard_k.failed what went wrong.

        Returns what went wrong; None is good.
        """
        name = shard_name(self.rank)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.before_write(save.step)
            record = write_shard(folder / name, save.pieces)
            verify_shard(folder, record)
            done = {"serial": save.serial, "record": asdict(record)}
            # Not synced to the disk, as the rest of the folder is before it counts: rank 0 goes on
            # as soon as it sees the name, and may have renamed the folder by then.
            write_json_atomic(folder / f"{name}.done.json", done, sync_folder=False)
            return None
        except Exception as error:
            problem = words(error)
            log.error("rank %d could not write %s: %s", self.rank, folder / name, problem)
            log.debug("the trace", exc_info=True)
        try:
            failed = {"serial": save.serial, "cause": problem}
            (folder / f"{name}.failed").write_text(json.dumps(failed), encoding="utf-8")
        except OSError:
            log.error("and could not say so in the folder; rank 0 will wait for its deadline")
        return problem

    def _commit(self, folder: Path, save: Save) -> None:
        """Rank 0: wait for all shards, check that they cover the model, write the manifest, rename.

        Raises:
            OSError, CorruptCheckpoint: a rank, or this one, could not write its part.
            Superseded: a later attempt owns the run folder.
        """
        records = self._wait_for_all(folder, save)
        parameters = {name: list(shape) for name, shape in save.parameter_shapes.items()}
        ranges = [
            (name, start, stop)
            for record in records
            for name, (start, stop, _) in (record.ranges or {}).items()
        ]
        problems = uncovered(parameters, ranges)
        if problems:
            raise CorruptCheckpoint(f"the ranks' parts do not cover the model: {problems[0]}")
        parity = write_parity(folder, records) if self.parity else None
        state = (json.dumps(save.state, indent=2) + "\n").encode()
        write_bytes_atomic(folder / "state.json", state)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            step=save.step,
            parameters=parameters,
            shards=records,
            state_xxh3_128=xxhash.xxh3_128_hexdigest(state),
            parity=parity,
        )
        for record in records:
            (folder / f"{record.file}.done.json").unlink()
        write_bytes_atomic(folder / "manifest.json", manifest_text(manifest).encode())
        read_state(folder, read_manifest(folder))  # as the shards: read back before it counts
        self.attempt.check_current()
        final = self._checkpoints / step_name(save.step)
        if final.exists():
            os.rename(final, free_name(final, "abandoned"))
        os.rename(folder, final)
        fsync_folder(self._checkpoints)

    def _wait_for_all(self, folder: Path, save: Save) -> list[ShardRecord]:
        """The ranks' done files, by opening names: network file systems cache listings.

        Raises:
            OSError: a rank has failed, or the deadline has passed.
        """
        deadline = time.monotonic() + self.commit_timeout_seconds
        records: list[ShardRecord] = []
        while len(records) < self.world_size:
            name = shard_name(len(records))
            done = _read_note(folder / f"{name}.done.json", save.serial)
            if done is not None:
                records.append(ShardRecord(**done["record"]))
                continue
            failed = _read_note(folder / f"{name}.failed", save.serial)
            if failed is not None:
                raise OSError(f"{name}: {failed['cause']}")
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{name} was not complete within {self.commit_timeout_seconds:g} s"
                )
            time.sleep(_POLL_SECONDS)
        return records

    def _remove_failed_saves(self, before: int) -> None:
        """What this attempt's earlier saves left: a slow rank may write on after rank 0 gave up."""
        for path in list_temporaries(self.attempt.run_folder):
            if path.suffix == f".tmp-{self.attempt.number}" and step_of(path) < before:
                shutil.rmtree(path, ignore_errors=True)

    def _retire_old(self) -> None:
        """Remove the oldest beyond `keep_last`: the newest has been read back and committed now."""
        try:
            for info in list_checkpoints(self.attempt.run_folder)[: -self.keep_last]:
                retire(info.folder, self.attempt.number)
        except OSError as error:
            log.error("an old checkpoint could not be removed: %s", error)


def retire(folder: Path, attempt_number: int) -> None:
    """Remove a checkpoint; what a kill in the middle leaves is removed at the run's next start.

    Raises:
        OSError: it could not be renamed; it is as it was.
    """
    # Renamed first: a half-removed folder must not look like a checkpoint.
    doomed = folder.with_name(f"{folder.name}.tmp-{attempt_number}")
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def words(error: Exception) -> str:
    """What went wrong, for a message; a defect of ours is named by its kind."""
    if isinstance(error, (OSError, CorruptCheckpoint)):
        return str(error)
    return f"{type(error).__name__}: {error}"


def free_name(folder: Path, suffix: str) -> Path:
    """`step_N.bad`, or `step_N.bad.2` where that exists."""
    name = folder.with_name(f"{folder.name}.{suffix}")
    number = 1
    while name.exists():
        number += 1
        name = folder.with_name(f"{folder.name}.{suffix}.{number}")
    return name


def _read_note(path: Path, serial: int) -> dict[str, Any] | None:
    """A done or failed file of this save; None where there is none yet, or an earlier save's."""
    try:
        text = path.read_bytes()
    except OSError:  # not there, or a passing error: it is asked for again until the deadline
        return None
    try:
        note: dict[str, Any] = json.loads(text)
    except ValueError:  # a full disk took the name of shard_k.failed and not what stands in it
        return {"serial": serial, "cause": "the rank failed, its log says why"}
    return note if note["serial"] == serial else None
