"""Is a step over although srun still waits? Seen in the run folder and in the states of nodes.

exit.json is there, srun is not gone       a step daemon has died: Slurm does not notice, and
                                           srun waits for it without end (seen on 22.05)
no heartbeat of any node changes           the same, and rank 0 was its task: no exit.json
a node of a --no-kill job is gone          its step does not end by itself
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from electra_dist.launch.records import attempt_folders, read_json

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
NODES_EVERY = 3
"""Looks at the run folder for each question to slurmctld about nodes."""

LINGER_SECONDS = 10.0
"""After exit.json the other ranks leave, and srun with them."""

SILENT_SECONDS = 60.0
"""Without a change in any heartbeat: they are written every 10 s, by a thread that always runs."""


class RunFolderWatch:
    """Tells from RUN whether the ranks of a launch are gone.

    Args:
        run_folder: RUN.
        launch: the word by which the launch knows its attempt.
        clock: for tests.
    """

    def __init__(
        self, run_folder: Path, launch: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run, self._launch, self._clock = run_folder, launch, clock
        self._ended_at: float | None = None
        self._beats: dict[str, int] = {}
        self._changed_at: float | None = None

    def verdict(self) -> str | None:
        """Why the step is over; None while it may live."""
        folder = self._attempt()
        if folder is None:
            return None
        now = self._clock()
        if (folder / "exit.json").exists():
            self._ended_at = now if self._ended_at is None else self._ended_at
            if now - self._ended_at >= LINGER_SECONDS:
                return "its ranks have ended"
            return None
        beats = {
            path.name: path.stat().st_mtime_ns
            for path in self._run.glob("heartbeat/node_*")
            if read_json(path).get("attempt") == int(folder.name)
        }
        # Clocks of hosts differ: only whether something changes is asked.
        if beats != self._beats:
            self._beats, self._changed_at = beats, now
        if self._changed_at is not None and beats and now - self._changed_at >= SILENT_SECONDS:
            return f"no rank has given a sign of life for {SILENT_SECONDS:.0f} s"
        return None

    def _attempt(self) -> Path | None:
        for folder in reversed(attempt_folders(self._run)):
            if read_json(folder / "start.json").get("launch") == self._launch:
                return folder
        return None


class StepWatch:
    """Looks now and then, in a thread: signals must not wait for a slow disk or for slurmctld.

    Args:
        run_folder: says why the step is over, or None.
        has_lost_nodes: asks slurmctld; None: nobody asks.
    """

    def __init__(
        self, run_folder: Callable[[], str | None], has_lost_nodes: Callable[[], bool] | None
    ) -> None:
        self._verdict, self._has_lost_nodes = run_folder, has_lost_nodes
        self._over, self._closed = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def is_over(self) -> bool:
        """Whether the step has to be ended."""
        return self._over.is_set()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()

    def _watch(self) -> None:
        looks = 0
        while not self._closed.wait(POLL_SECONDS):
            looks += 1
            try:
                why = self._verdict()
            except OSError:  # a network file system is away: nothing is known
                why = None
            if why is None and self._has_lost_nodes and looks % NODES_EVERY == 0:
                why = "a node of it is gone" if self._has_lost_nodes() else None
            if why is not None:
                log.error("ending the step, which does not end by itself: %s", why)
                self._over.set()
                return
