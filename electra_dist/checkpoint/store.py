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
from collections.abc import Callable
from typing import Any, NamedTuple

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
from electra_dist.checkpoint.restore import check, fill, require_same_model
from electra_dist.checkpoint.shard import Piece
from electra_dist.engine.protocol import Engine
from electra_dist.errors import UserError
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.control import Control
from electra_dist.runtime.phases import Phases

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
        phases: the clock of this rank's main thread.
        before_write: see `Committer`.
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
        phases: Phases | None = None,
        before_write: Callable[[int], None] = lambda _: None,
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
            before_write=before_write,
        )
        self._phases = phases or Phases()
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

    @property
    def buffer_bytes(self) -> int:
        """Host memory that saves are copied into."""
        return 0 if self._buffers is None else self._buffers.num_bytes

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
            with self._phases.enter("commit"):
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
        self,
        engine: Engine,
        parameter_shapes: dict[str, tuple[int, ...]],
        *,
        max_step: int | None = None,
    ) -> dict[str, Any] | None:
        """Fill the engine from the newest checkpoint that verifies on every rank.

        Collective. Returns its state.json, or None if there is no checkpoint at all. Newer ones
        that do not verify are named in events.jsonl and kept aside as `step_N.bad`.

        Args:
            engine: untouched until every rank has verified what it is going to read.
            parameter_shapes: of the model that is to be filled.
            max_step: roll back: take none of a later step, and rename those `step_N.abandoned`.

        Raises:
            UserError: there are checkpoints but none verifies, or the newest good one is of another
                model.
            Superseded: a later attempt owns the run folder, and something is to be renamed.
        """
        bad: list[tuple[CheckpointInfo, str]] = []
        newer, candidates = self._candidates(max_step)
        if newer and not candidates:
            raise UserError(
                f"{self._folder} has no checkpoint of step {max_step} or before; the oldest is "
                f"{newer[-1].folder.name}: roll back to that step or a later one"
            )
        for info in candidates:
            reader, problems = self._check_on_all(info, engine, parameter_shapes)
            if problems and self._repair(info, problems[0]):
                reader, problems = self._check_on_all(info, engine, parameter_shapes)
            if not problems:
                # Before the engine goes on from the older state: a crash from here on must not
                # find the newer ones the newest again.
                self._set_aside(bad, newer)
                bad, newer = [], []
                problems = self._fill_on_all(reader, engine)
            if problems:
                bad.append((info, problems[0]))
                continue
            engine.state_restored()
            assert reader is not None
            return reader.state
        if bad:
            raise UserError(
                f"{self._folder}: no checkpoint verifies ({bad[0][1]}); "
                "repair the files, or start anew with another --out folder"
            )
        return None

    def step_before(self, step: int) -> int | None:
        """The newest checkpoint older than `step`, for a roll-back further back. Collective."""
        older = [info.step for info in list_checkpoints(self.run_folder) if info.step < step]
        found: int | None = self._control.broadcast_json(
            older[-1] if older else None, name="an older checkpoint"
        )
        return found

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

    def _candidates(
        self, max_step: int | None
    ) -> tuple[list[CheckpointInfo], list[CheckpointInfo]]:
        """Rank 0's list of complete checkpoints, newest first, on every rank; too new, and good."""
        names = [info.folder.name for info in reversed(list_checkpoints(self.run_folder))]
        names = self._control.broadcast_json(names, name="list of checkpoints")
        infos = [
            CheckpointInfo(step=step_of(f), folder=f) for f in map(self._folder.joinpath, names)
        ]
        num_newer = sum(max_step is not None and info.step > max_step for info in infos)
        return infos[:num_newer], infos[num_newer:]

    def _check_on_all(
        self, info: CheckpointInfo, engine: Engine, shapes: dict[str, tuple[int, ...]]
    ) -> tuple[CheckpointReader | None, list[str]]:
        """A reader whose ranges this rank has checked, and what is wrong on any rank."""
        reader, problem = None, None
        try:
            with CheckpointReader(info.folder) as reader:
                require_same_model(reader, shapes)
                check(reader, engine.local_fragments())
        except CorruptCheckpoint as error:
            problem = str(error)
        return reader, self._problems(problem)

    def _fill_on_all(self, reader: CheckpointReader | None, engine: Engine) -> list[str]:
        """What is wrong on any rank: a block that was good a moment ago, so next to never."""
        problem = None
        try:
            assert reader is not None
            fill(reader, engine.local_fragments())
        except CorruptCheckpoint as error:
            problem = str(error)
        return self._problems(problem)

    def _problems(self, own: str | None) -> list[str]:
        problems = self._control.all_gather_objects(own, name="reading a checkpoint")
        return [problem for problem in problems if problem]

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

    def _set_aside(
        self, bad: list[tuple[CheckpointInfo, str]], newer: list[CheckpointInfo]
    ) -> None:
        """Rename those that do not verify, and those that a roll-back supersedes (rank 0)."""
        if self._control.rank != 0 or not (bad or newer):
            return
        self._attempt.check_current()
        for info, problem in bad:
            log.error(
                "checkpoint %s does not verify and is set aside: %s", info.folder.name, problem
            )
            os.rename(info.folder, free_name(info.folder, "bad"))
            self._committer.record("bad_checkpoint", checkpoint=info.folder.name, cause=problem)
        for info in newer:  # newest first: at no time is a gap in what is left
            log.warning("checkpoint %s is abandoned by a roll-back", info.folder.name)
            os.rename(info.folder, free_name(info.folder, "abandoned"))
            self._committer.record("abandoned", checkpoint=info.folder.name)
