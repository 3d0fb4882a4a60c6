"""Saving, committing, restoring and retiring the checkpoints of one run.

A save writes each rank's element ranges to `step_N.tmp-<attempt>/`, reads them back against their
hashes, and ends with a done file; rank 0 commits with manifest.json and one rename. A crash at any
byte leaves the previous checkpoint the newest one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import xxhash

from electra_dist.checkpoint.layout import (
    FORMAT_VERSION,
    CheckpointInfo,
    CorruptCheckpoint,
    Manifest,
    ShardRecord,
    checkpoints_folder,
    list_checkpoints,
    list_temporaries,
    manifest_text,
    shard_name,
    step_name,
    uncovered,
)
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.checkpoint.shard import Piece, ShardReader, write_shard
from electra_dist.engine.protocol import Engine, Fragment
from electra_dist.errors import UserError
from electra_dist.runtime.attempt import Attempt, Events
from electra_dist.runtime.control import Control
from electra_dist.runtime.files import fsync_folder, write_bytes_atomic, write_json_atomic

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.02


class CheckpointStore:
    """The checkpoints of a run folder as one rank of one attempt sees them. Methods are collective.

    Args:
        attempt: who writes; a superseded attempt commits nothing.
        control: exchanges between ranks.
        keep_last: newest checkpoints to keep.
        commit_timeout_seconds: how long rank 0 waits for the other ranks' files.
    """

    def __init__(
        self, attempt: Attempt, control: Control, keep_last: int, commit_timeout_seconds: float
    ) -> None:
        self.run_folder = attempt.run_folder
        self._folder = checkpoints_folder(attempt.run_folder)
        self._attempt, self._control = attempt, control
        self._events = Events(attempt=attempt, rank=control.rank)
        self._keep_last = keep_last
        self._commit_timeout_seconds = commit_timeout_seconds

    def save(self, engine: Engine, step: int, state: dict[str, Any]) -> bool:
        """Save the engine's state and `state` (for state.json) as the checkpoint of `step`.

        Returns whether it was committed on disk; a disk that does not take it is an event, and the
        older checkpoints stay.

        Raises:
            Superseded: a later attempt owns the run folder.
        """
        started = time.monotonic()
        folder = self._folder / f"{step_name(step)}.tmp-{self._attempt.number}"
        self._write_own_shard(folder, engine.owned_fragments())
        problem = self._commit(folder, step, engine, state) if self._control.rank == 0 else None
        problem = self._control.broadcast_json(problem, name="commit of a checkpoint")
        if self._control.rank == 0:
            seconds = round(time.monotonic() - started, 3)
            if problem is None:
                self._record("save", step=step, seconds=seconds)
                self._retire_old()
            else:
                log.error("checkpoint of step %d was not saved: %s", step, problem)
                shutil.rmtree(folder, ignore_errors=True)  # first: the event may need the room
                self._record("save_failed", step=step, cause=problem)
        return problem is None

    def restore(
        self, engine: Engine, parameter_shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, Any] | None:
        """Fill the engine from the newest checkpoint that verifies on every rank.

        Returns its state.json, or None if the run has no checkpoint at all. Newer ones that do not
        verify are named in events.jsonl and kept aside as `step_N.bad`.

        Raises:
            UserError: there are checkpoints but none verifies, or the newest good one is of another
                model.
        """
        bad: list[tuple[CheckpointInfo, str]] = []
        for info in self._candidates():
            values, state, problem = self._read(info, engine, parameter_shapes)
            problems = [p for p in self._control.all_gather_objects(problem) if p]
            if problems:
                bad.append((info, problems[0]))
                continue
            self._set_aside(bad)
            for fragment, read in zip(engine.local_fragments(), values, strict=True):
                fragment.values.copy_(read)
            engine.state_restored()
            return state
        if bad:
            raise UserError(
                f"{self._folder}: no checkpoint verifies ({bad[0][1]}); "
                "repair the files, or start anew with another --out folder"
            )
        return None

    def remove_leftovers(self) -> None:
        """Remove what crashed saves of earlier attempts left behind (rank 0)."""
        if self._control.rank == 0:
            self._attempt.check_current()
            for path in list_temporaries(self.run_folder):
                shutil.rmtree(path, ignore_errors=True)

    def newest_name(self) -> str | None:
        """Name of the newest complete checkpoint."""
        complete = list_checkpoints(self.run_folder)
        return complete[-1].folder.name if complete else None

    def _write_own_shard(self, folder: Path, fragments: Iterable[Fragment]) -> None:
        """Write, read back, and say so in shard_k.done.json; in shard_k.failed what went wrong."""
        name = shard_name(self._control.rank)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            pieces = [
                Piece(f"{f.parameter}/{f.kind}", f.start, f.values.detach().cpu().numpy())
                for f in fragments
            ]
            record = write_shard(folder / name, pieces)
            with contextlib.closing(ShardReader(folder, record)) as reader:
                reader.verify()
            ranges = [(p.name, p.start, p.start + len(p.values)) for p in pieces]
            done = {"record": asdict(record), "ranges": ranges}
            write_json_atomic(folder / f"{name}.done.json", done)
        except (OSError, CorruptCheckpoint) as error:
            log.error("rank %d could not write %s: %s", self._control.rank, folder / name, error)
            try:
                (folder / f"{name}.failed").write_text(str(error), encoding="utf-8")
            except OSError:
                log.error("and could not say so in the folder; rank 0 will wait for its deadline")

    def _commit(self, folder: Path, step: int, engine: Engine, state: dict[str, Any]) -> str | None:
        """Rank 0: wait for all shards, check that they cover the model, write the manifest, rename.

        Returns what went wrong; None is good.
        """
        try:
            done = [self._wait_for(folder, shard_name(r)) for r in range(self._control.world_size)]
            parameters = {name: list(shape) for name, shape in engine.parameter_shapes.items()}
            problems = uncovered(parameters, [tuple(r) for d in done for r in d["ranges"]])
            if problems:
                return f"the ranks' parts do not cover the model: {problems[0]}"
            state_bytes = (json.dumps(state, indent=2) + "\n").encode()
            write_bytes_atomic(folder / "state.json", state_bytes)
            manifest = Manifest(
                format_version=FORMAT_VERSION,
                step=step,
                parameters=parameters,
                shards=[ShardRecord(**d["record"]) for d in done],
                state_xxh3_128=xxhash.xxh3_128_hexdigest(state_bytes),
            )
            for rank in range(self._control.world_size):
                (folder / f"{shard_name(rank)}.done.json").unlink()
            write_bytes_atomic(folder / "manifest.json", manifest_text(manifest).encode())
            self._attempt.check_current()
            final = self._folder / step_name(step)
            if final.exists():
                os.rename(final, _free_name(final, "abandoned"))
            os.rename(folder, final)
            fsync_folder(self._folder)
        except (OSError, TimeoutError) as error:
            return str(error)
        return None

    def _wait_for(self, folder: Path, name: str) -> dict[str, Any]:
        """A rank's done file, by opening its name: network file systems cache listings."""
        deadline = time.monotonic() + self._commit_timeout_seconds
        while True:
            try:
                done: dict[str, Any] = json.loads((folder / f"{name}.done.json").read_bytes())
                return done
            except FileNotFoundError:
                failed = folder / f"{name}.failed"
                if failed.exists():
                    raise OSError(f"{name}: {failed.read_text(encoding='utf-8')}") from None
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{name} was not complete within {self._commit_timeout_seconds:g} s"
                ) from None
            time.sleep(_POLL_SECONDS)

    def _candidates(self) -> list[CheckpointInfo]:
        """Rank 0's list of complete checkpoints, newest first, on every rank."""
        names = [info.folder.name for info in reversed(list_checkpoints(self.run_folder))]
        names = self._control.broadcast_json(names, name="list of checkpoints")
        return [
            CheckpointInfo(step=int(n.removeprefix("step_")), folder=self._folder / n)
            for n in names
        ]

    def _read(
        self, info: CheckpointInfo, engine: Engine, shapes: dict[str, tuple[int, ...]]
    ) -> tuple[list[torch.Tensor], dict[str, Any], str | None]:
        """This rank's ranges in host memory, checked; or what is wrong with them.

        The engine is not touched.
        """
        try:
            with CheckpointReader(info.folder) as reader:
                saved = {name: tuple(shape) for name, shape in reader.manifest.parameters.items()}
                if saved != shapes:
                    differing = sorted(
                        n for n in {*saved, *shapes} if saved.get(n) != shapes.get(n)
                    )
                    raise UserError(
                        f"{info.folder} holds another model: {differing[0]} has shape "
                        f"{saved.get(differing[0])} there and {shapes.get(differing[0])} here"
                    )
                values = [
                    torch.from_numpy(
                        reader.read_range(f.parameter, f.kind, f.start, f.start + len(f.values))
                    )
                    for f in engine.local_fragments()
                ]
                return values, reader.state, None
        except CorruptCheckpoint as error:
            return [], {}, str(error)

    def _set_aside(self, bad: list[tuple[CheckpointInfo, str]]) -> None:
        if self._control.rank == 0:
            for info, problem in bad:
                log.error(
                    "checkpoint %s does not verify and is set aside: %s", info.folder.name, problem
                )
                os.rename(info.folder, _free_name(info.folder, "bad"))
                self._record("bad_checkpoint", checkpoint=info.folder.name, cause=problem)

    def _record(self, event: str, **details: Any) -> None:
        """An event in events.jsonl; a disk that is too full for it ends no run, the log has it."""
        try:
            self._events.append(event, **details)
        except OSError as error:
            log.error("event %s %s could not be written: %s", event, details, error)

    def _retire_old(self) -> None:
        """Remove the oldest beyond `keep_last`; the newest has been read back and committed now."""
        for info in list_checkpoints(self.run_folder)[: -self._keep_last]:
            # Renamed first: a half-removed folder must not look like a checkpoint.
            doomed = info.folder.with_name(f"{info.folder.name}.tmp-{self._attempt.number}")
            os.rename(info.folder, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _free_name(folder: Path, suffix: str) -> Path:
    """`step_N.bad`, or `step_N.bad.2` where that exists."""
    name = folder.with_name(f"{folder.name}.{suffix}")
    number = 1
    while name.exists():
        number += 1
        name = folder.with_name(f"{folder.name}.{suffix}.{number}")
    return name
