"""Saving and restoring the checkpoints of one run, as the training thread sees it.

A save copies each rank's element ranges and leaves the rest to the rank's writer thread
(`async_writer`), which writes, reads back and commits (`commit`). A crash at any byte leaves the
previous checkpoint the newest one.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from typing import Any, NamedTuple

import torch

from electra_dist.checkpoint.async_writer import MAX_IN_FLIGHT, BackgroundWriter, HostBuffers
from electra_dist.checkpoint.commit import Committer, Save, free_name
from electra_dist.checkpoint.layout import (
    CheckpointInfo,
    CorruptCheckpoint,
    checkpoints_folder,
    list_checkpoints,
    list_temporaries,
    step_of,
)
from electra_dist.checkpoint.parity import repair
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.checkpoint.shard import Piece
from electra_dist.engine.protocol import Engine
from electra_dist.errors import UserError
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.control import Control

log = logging.getLogger(__name__)

_WAIT_SECONDS = 0.5
"""How long a rank waits for its own thread before the ranks ask one another again."""


class WriterSigns(NamedTuple):
    """What this rank's writer has to tell the others; each number is to be added up over ranks."""

    busy: float
    """1 if there is no room for another save."""
    failed: float
    """Saves that failed since the last look."""
    superseded: float
    """1 if a later attempt owns the run folder."""


class CheckpointStore:
    """The checkpoints of a run folder as one rank of one attempt sees them.

    Args:
        attempt: who writes; a superseded attempt commits nothing.
        control: exchanges between ranks.
        keep_last: newest checkpoints to keep.
        commit_timeout_seconds: how long rank 0 waits for the other ranks' files.
        asynchronous: go on training while a save is written; else a save returns when it is done.
        parity: write a file with each checkpoint from which one lost shard can be rebuilt.
    """

    def __init__(
        self,
        attempt: Attempt,
        control: Control,
        *,
        keep_last: int,
        commit_timeout_seconds: float,
        asynchronous: bool = True,
        parity: bool = False,
    ) -> None:
        self.run_folder = attempt.run_folder
        self._folder = checkpoints_folder(attempt.run_folder)
        self._attempt, self._control = attempt, control
        self._asynchronous = asynchronous
        self._committer = Committer(
            attempt=attempt,
            rank=control.rank,
            world_size=control.world_size,
            keep_last=keep_last,
            commit_timeout_seconds=commit_timeout_seconds,
            parity=parity,
        )
        self._writer = BackgroundWriter(self._committer.carry_out)
        self._buffers: HostBuffers | None = None
        self._num_begun = 0

    def prepare(self, engine: Engine) -> None:
        """Make and touch the host buffers, two times what this rank owns, before the first step."""
        if self._asynchronous and self._buffers is None:
            num_elements = sum(len(fragment.values) for fragment in engine.owned_fragments())
            self._buffers = HostBuffers(num_elements, engine.device)

    def save(self, engine: Engine, step: int, state: dict[str, Any]) -> None:
        """Begin a save of the engine's state and of `state` (for state.json).

        Every rank calls this at the same step, where no rank's signs said `busy`; nothing is
        exchanged (but in the synchronous mode). `signs` and `wait` tell what became of it.

        Raises:
            Superseded: synchronous mode: a later attempt owns the run folder.
        """
        started = time.monotonic()
        # Before the copy: a third one would overwrite the first.
        assert self._writer.num_in_flight < MAX_IN_FLIGHT, "no buffer set is free"
        self.prepare(engine)
        fragments = engine.owned_fragments()
        if self._buffers is not None:
            pieces = self._buffers.copy(fragments, self._num_begun)
        else:
            pieces = [
                Piece(f"{f.parameter}/{f.kind}", f.start, f.values.detach().cpu().numpy())
                for f in fragments
            ]
        self._writer.begin(
            Save(
                serial=self._num_begun,
                step=step,
                state=state,
                parameter_shapes=engine.parameter_shapes,
                pieces=pieces,
                blocked_seconds=time.monotonic() - started if self._asynchronous else None,
            )
        )
        self._num_begun += 1
        if not self._asynchronous:
            self.wait()

    def signs(self) -> WriterSigns:
        """What rides in the one small all-reduce of a step.

        Raises:
            RuntimeError: the writer's thread is dead.
        """
        return WriterSigns(
            busy=float(self._writer.num_in_flight >= MAX_IN_FLIGHT),
            failed=float(self._writer.take_num_failed()),
            superseded=float(self._writer.superseded),
        )

    @property
    def num_in_flight(self) -> int:
        """This rank's saves that are begun and not done."""
        return self._writer.num_in_flight

    def take_seconds(self) -> list[float]:
        """How long each save took this rank's writer that was done since this was last asked."""
        return self._writer.take_seconds()

    def wait(self) -> bool:
        """Wait until no rank has a save in flight; whether the newest one is on disk. Collective.

        Raises:
            Superseded: a later attempt owns the run folder.
        """
        while True:
            self._writer.wait_idle(_WAIT_SECONDS)
            in_flight, failed, superseded = self._control.all_reduce_sum(
                [
                    float(self._writer.num_in_flight),
                    float(self._writer.last_failed),
                    float(self._writer.superseded),
                ],
                name="wait for the commit of a checkpoint",
            )
            if superseded:
                raise self._attempt.superseded()
            if not in_flight:
                return not failed

    def settle(self, timeout_seconds: float) -> None:
        """Give this rank's writer some time before the process leaves after an error. Local."""
        self._writer.wait_idle(timeout_seconds)

    def close(self) -> None:
        """End the writer's thread."""
        self._writer.close()

    def restore(
        self, engine: Engine, parameter_shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, Any] | None:
        """Fill the engine from the newest checkpoint that verifies on every rank.

        Collective. Returns its state.json, or None if the run has no checkpoint at all. Newer ones
        that do not verify are named in events.jsonl and kept aside as `step_N.bad`.

        Raises:
            UserError: there are checkpoints but none verifies, or the newest good one is of another
                model.
        """
        bad: list[tuple[CheckpointInfo, str]] = []
        for info in self._candidates():
            values, state, problems = self._read_on_all(info, engine, parameter_shapes)
            if problems and self._repair(info, problems[0]):
                values, state, problems = self._read_on_all(info, engine, parameter_shapes)
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

    def _candidates(self) -> list[CheckpointInfo]:
        """Rank 0's list of complete checkpoints, newest first, on every rank."""
        names = [info.folder.name for info in reversed(list_checkpoints(self.run_folder))]
        names = self._control.broadcast_json(names, name="list of checkpoints")
        folders = [self._folder / name for name in names]
        return [CheckpointInfo(step=step_of(folder), folder=folder) for folder in folders]

    def _read_on_all(
        self, info: CheckpointInfo, engine: Engine, shapes: dict[str, tuple[int, ...]]
    ) -> tuple[list[torch.Tensor], dict[str, Any], list[str]]:
        """`_read`, and what is wrong on any rank."""
        values, state, problem = self._read(info, engine, shapes)
        problems = self._control.all_gather_objects(problem, name="reading a checkpoint")
        return values, state, [problem for problem in problems if problem]

    def _repair(self, info: CheckpointInfo, problem: str) -> bool:
        """Rank 0 rebuilds what is damaged where there is a parity file; the same on every rank."""
        rebuilt: list[str] = []
        if self._control.rank == 0:
            self._attempt.check_current()
            try:
                rebuilt = repair(info.folder)
            except (CorruptCheckpoint, OSError) as error:
                log.debug("no repair: %s", error)  # the log has it; most runs keep no parity
            if rebuilt:
                log.warning("%s: rebuilt %s", info.folder, ", ".join(rebuilt))
                self._committer.record(
                    "repair", checkpoint=info.folder.name, files=rebuilt, cause=problem
                )
        return bool(self._control.broadcast_json(rebuilt, name="repair of a checkpoint"))

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
                os.rename(info.folder, free_name(info.folder, "bad"))
                self._committer.record("bad_checkpoint", checkpoint=info.folder.name, cause=problem)
