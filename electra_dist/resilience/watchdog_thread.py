"""The thread that looks after the main thread of a rank, and ends the process where that hangs.

A rank that finds a hang logs its Python stacks and writes attempts/NNNN/hang/rank_00001.json: where
it is, and what it knows of its neighbours. That rings the bell for all others, who do the same. The
lowest rank that answers says who keeps the others waiting, in events.jsonl and exit.json; then each
ends its own process, whatever its main thread is in, and the launcher the rest.

A rank whose watchdog itself could not run (SIGSTOP, a call that never lets go of the interpreter)
does not answer. One that wakes up again begins to count anew: a job may be suspended as a whole.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from electra_dist.checkpoint.layout import list_checkpoints
from electra_dist.config.running import ResilienceConfig
from electra_dist.errors import Superseded
from electra_dist.resilience.watchdog import Verdict, known, limit, verdict
from electra_dist.runtime.attempt import Attempt, Events
from electra_dist.runtime.beats import Beats
from electra_dist.runtime.phases import WAITING, Phases

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
"""Between two writes of a node's file."""

POLL_SECONDS = 1.0
"""Between two looks at the main thread; a fourth of the floor where that is less."""

GRACE_SECONDS = 5.0
"""How long ranks wait for one another's records, and then for exit.json: a few polls."""

FOLDER_POLL_SECONDS = 0.25
"""Between two looks at the attempt's folder then: a thousand ranks look at once."""

LAST_RESORT_SECONDS = 30.0
"""After a hang was found the process is gone, even if the run folder's disk hangs too."""


class WatchdogThread:
    """Of one rank.

    Args:
        phases: what the main thread is in.
        beats: signs of life.
        attempt: whose folder takes the records.
        rank: this one.
        world_size: of the run.
        config: how long a phase may last; no floor: heartbeats only.
        log_path: this rank's log, which takes the stacks.
        completed_steps: how far the run is.
        on_hang: called on the rank that speaks for all, before exit.json is written.
    """

    def __init__(
        self,
        *,
        phases: Phases,
        beats: Beats,
        attempt: Attempt,
        rank: int,
        world_size: int,
        config: ResilienceConfig,
        log_path: Path,
        completed_steps: Callable[[], int],
        on_hang: Callable[[], object],
    ) -> None:
        self._phases, self._beats, self._attempt = phases, beats, attempt
        self._rank, self._world_size, self._config = rank, world_size, config
        self._log_path = log_path
        self._completed_steps, self._on_hang = completed_steps, on_hang
        self._is_writer_of_node = rank == beats.node.ranks[0]
        self._folder = attempt.folder / "hang"
        self._floor = config.hang_floor_seconds
        self._poll = min(POLL_SECONDS, (self._floor or POLL_SECONDS) / 4)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._stopped.set()
        self._thread.join(GRACE_SECONDS)

    def _run(self) -> None:
        looked = awake_since = time.monotonic()
        heartbeat_due = 0.0
        while not self._stopped.wait(self._poll):
            now = time.monotonic()
            if now - looked > self._poll + GRACE_SECONDS:
                log.warning("this process did not run for %.0f s", now - looked)
                awake_since = now
            looked = now
            try:
                if self._is_writer_of_node and now >= heartbeat_due:
                    heartbeat_due = now + HEARTBEAT_SECONDS
                    self._beats.write_node_file()
                if self._floor is not None and self._hangs(now, awake_since):
                    self._end()
            except Superseded:
                return  # the main thread finds out at its next write
            except OSError as error:
                log.debug("watchdog: %s", error)

    def _hangs(self, now: float, awake_since: float) -> bool:
        """Whether the main thread is in a phase for too long, or rather long and the bell rings."""
        assert self._floor is not None
        current = self._phases.current
        lasted = now - max(current.since, awake_since)
        if lasted < self._floor / 2:
            return False  # nothing on a shared disk is asked as long as all is well
        durations = {phase: list(kept) for phase, kept in self._phases.durations.items()}
        waiting = WAITING | self._phases.of_device
        if lasted > limit(current, durations, self._config, waiting):
            log.error("%s of step %d lasts %.1f s: a hang", current.phase, current.step, lasted)
            return True
        return _exists(self._attempt.folder, self._folder.name)

    def _end(self) -> None:
        """Say what is known, and end this process."""
        last_resort = threading.Timer(LAST_RESORT_SECONDS, os._exit, [1])
        last_resort.daemon = True
        last_resort.start()
        with self._log_path.open("a", encoding="utf-8") as file:
            file.write(f"--- stacks of rank {self._rank}, the watchdog found a hang\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        try:
            self._write_record()
            ranks = self._ranks_that_answer()
            if self._rank == min(ranks):
                records = {rank: self._read(rank) for rank in ranks}
                found = verdict(known(records), self._world_size)
                log.error("hang: %s", found.words())
                self._say(found, records[self._rank]["own"]["step"])
            else:
                log.error("hang: rank %d says in events.jsonl who it is", min(ranks))
                self._wait_for_exit_json()
        except Superseded as error:
            log.error("%s", error)
        except OSError as error:
            log.error("the hang could not be written down: %s", error)
        finally:
            with suppress(Exception):
                self._beats.close()  # nothing of this rank stays in the host's temporary folder
            # Not by logging.shutdown: the main thread may hold a handler's lock.
            os._exit(1)

    def _write_record(self) -> None:
        now, beats, node = time.time(), self._beats.look(), self._beats.node
        current = self._phases.current
        own = {
            "rank": self._rank,
            "host": node.host,
            "step": current.step,
            "number": current.number,
            "phase": current.phase,
            "seconds": round(time.monotonic() - current.since, 1),
        }
        neighbours = [
            {
                "rank": rank,
                "host": node.host,
                "step": beat["step"],
                "number": beat["number"],
                "phase": beat["phase"],
                "seconds": round(now - beat["since"], 1),
            }
            for rank, beat in beats.items()
            if beat and rank != self._rank
        ]
        self._folder.mkdir(exist_ok=True)
        path = self._folder / _name(self._rank)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"own": own, "neighbours": neighbours}), encoding="utf-8")
        temporary.rename(path)

    def _ranks_that_answer(self) -> set[int]:
        """Those whose records appear within the grace; this one's among them."""
        deadline = time.monotonic() + GRACE_SECONDS
        while True:
            ranks = {self._rank, *_ranks_in(self._folder)}
            if len(ranks) == self._world_size or time.monotonic() > deadline:
                return ranks
            time.sleep(FOLDER_POLL_SECONDS)

    def _read(self, rank: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self._folder / _name(rank)).read_bytes())
        return record

    def _say(self, found: Verdict, step: int) -> None:
        """What the run's files are told, by one rank."""
        newest = list_checkpoints(self._attempt.run_folder)[-1:]
        try:
            Events(attempt=self._attempt, rank=self._rank).append(
                "hang",
                step=step,
                cause=found.words(),
                ranks=[where.rank for where in found.guilty] + list(found.unknown),
                phases=sorted({where.phase for where in found.guilty}),
                hosts=sorted({where.host for where in found.guilty}),
            )
            self._on_hang()
        except OSError as error:
            log.error("the event hang could not be written: %s", error)
        self._attempt.write_exit(
            reason="hang",
            step=self._completed_steps(),
            checkpoint=newest[0].folder.name if newest else None,
            exit_code=1,
        )

    def _wait_for_exit_json(self) -> None:
        """A launcher ends all ranks once one is gone: not before the one that speaks is done."""
        deadline = time.monotonic() + GRACE_SECONDS
        while not _exists(self._attempt.folder, "exit.json") and time.monotonic() < deadline:
            time.sleep(FOLDER_POLL_SECONDS)


def _name(rank: int) -> str:
    return f"rank_{rank:05d}.json"


def _ranks_in(folder: Path) -> set[int]:
    """Whose records are there; a listing opens the folder, as below."""
    return {int(path.stem.removeprefix("rank_")) for path in folder.glob("*.json")}


def _exists(folder: Path, name: str) -> bool:
    """The folder is opened first: see `Attempt.check_current`."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        os.stat(name, dir_fd=descriptor)
    except FileNotFoundError:
        return False
    finally:
        os.close(descriptor)
    return True
