"""An attempt: one life of a run's processes, numbered by a folder that only one of them could make.

    RUN/attempts/0001/start.json   the first life was launched then, with so many ranks
    RUN/attempts/0001/exit.json    it ended, and this is why
    RUN/attempts/0002/             the second one: running, or ended without a word (a crash)

A node that was cut off may wake up after its job was requeued elsewhere. It must not write then:
before every commit and append a writer asks whether a higher attempt exists.
"""

import json
import logging
import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from electra_dist.config.lines import append_line
from electra_dist.errors import Superseded, UserError
from electra_dist.runtime.files import write_json_atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One numbered attempt at `run_folder`: rank 0 makes it by `claim`, the others by `join`."""

    run_folder: Path
    number: int
    """From 1."""

    @property
    def folder(self) -> Path:
        """RUN/attempts/NNNN: logs of the ranks and exit.json."""
        return self.run_folder / "attempts" / f"{self.number:04d}"

    @classmethod
    def claim(cls, run_folder: Path) -> "Attempt":
        """Make the next free attempts/NNNN; two claimers at once get two numbers.

        Raises:
            UserError: the folder can't be made there.
        """
        attempts = run_folder / "attempts"
        try:
            attempts.mkdir(parents=True, exist_ok=True)
            number = max((int(p.name) for p in attempts.iterdir() if p.name.isdigit()), default=0)
            while True:
                number += 1
                attempt = cls(run_folder=run_folder, number=number)
                try:
                    attempt.folder.mkdir()
                except FileExistsError:
                    continue
                return attempt
        except OSError as error:
            raise UserError(
                f"The run folder {run_folder} can't be written ({error.strerror}): "
                "give --out a folder on a disk that you may write to."
            ) from error

    @classmethod
    def join(cls, run_folder: Path, number: int) -> "Attempt":
        """The attempt that rank 0 has claimed, for the other ranks."""
        return cls(run_folder=run_folder, number=number)

    def check_current(self) -> None:
        """Return if this is the newest attempt.

        Numbers have no gaps, so one name is looked up instead of listing them all. The folder is
        opened first: that makes a network file system ask its server again (close-to-open), where a
        plain stat may answer "no such file" from a cache that is seconds old.

        Raises:
            Superseded: a later attempt has claimed the run folder.
        """
        descriptor = os.open(self.run_folder / "attempts", os.O_RDONLY)
        try:
            os.stat(f"{self.number + 1:04d}", dir_fd=descriptor)
        except FileNotFoundError:
            return
        finally:
            os.close(descriptor)
        raise self.superseded()

    def superseded(self) -> Superseded:
        """What is raised once a later attempt is known, by whichever rank has found it."""
        return Superseded(
            f"Attempt {self.number} of {self.run_folder} has been superseded by a later one."
        )

    def append_jsonl(self, path: Path, record: dict[str, Any]) -> None:
        """Append `record` to `path` as one line, in one write, if this attempt is still the newest.

        Raises:
            Superseded: it is not; nothing was written.
            OSError: the disk took no whole line; nothing of it is left.
        """
        self.check_current()
        append_line(path, json.dumps(record, ensure_ascii=False))

    def write_start(self, launched: float, launch: str | None, world_size: int) -> None:
        """Write start.json: who has claimed this attempt; a disk that does not take it ends no run.

        Args:
            launched: when its processes were started, in seconds since 1970.
            launch: the word that their launcher gave them, by which it knows its own attempts.
            world_size: how many ranks.
        """
        value = {
            "launched": round(launched, 3),
            "claimed": round(time.time(), 3),
            "launch": launch,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "world_size": world_size,
            "job": os.environ.get("SLURM_JOB_ID"),
        }
        try:
            write_json_atomic(self.folder / "start.json", value)
        except OSError as error:
            log.error("%s could not be written (%s)", self.folder / "start.json", error)

    def write_exit(self, *, reason: str, step: int, checkpoint: str | None, exit_code: int) -> None:
        """Write exit.json, rank 0's last act: launchers decide on it, for they rewrite exit codes.

        Allowed to a superseded attempt too: the folder is its own.

        Args:
            reason: "finished", "stopped", "asked", "failed", "hang" or "superseded".
            step: optimizer steps completed.
            checkpoint: name of the newest complete checkpoint, such as step_00001000, or None.
            exit_code: what this process ends with: 0, 75, 1 or 2.
        """
        value = {"reason": reason, "step": step, "checkpoint": checkpoint, "exit_code": exit_code}
        write_json_atomic(self.folder / "exit.json", value)


@dataclass(frozen=True, kw_only=True)
class Events:
    """RUN/events.jsonl: what happened to the run, each event with time, attempt, rank and cause."""

    attempt: Attempt
    rank: int

    def append(self, event: str, **details: Any) -> None:
        """Record `event` ("start", "resume", "save", "stop", ...) with its details.

        Raises:
            Superseded: a later attempt owns the run folder; nothing was written.
            OSError: the disk took no whole line.
        """
        record = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "attempt": self.attempt.number,
            "rank": self.rank,
            "event": event,
        }
        clash = record.keys() & details.keys()
        assert not clash, f"details of the event {event!r} may not be called {sorted(clash)}"
        path = self.attempt.run_folder / "events.jsonl"
        self.attempt.append_jsonl(path, record | details)
