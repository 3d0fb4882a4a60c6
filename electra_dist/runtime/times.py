"""Where the time of an attempt goes: attempts/NNNN/times.jsonl, by rank 0; no torch.

    {"time": 1770000000.0, "step": 120, "start_up_seconds": 8.1, "data_wait_seconds": 0.3, ...}

A line holds the seconds of each part since the attempt was launched, and the step completed then. A
killed attempt has lost what came after its last line. `launch/goodput.py` adds the attempts up.
`time` is the launch, by the wall clock, and what a monotonic clock has counted since then.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil

from electra_dist.config import variables
from electra_dist.runtime.attempt import Attempt

log = logging.getLogger(__name__)

PARTS = ("start_up", "data_wait", "step", "save", "evaluation", "hang")

EVERY_SECONDS = 10.0
"""Between two lines at least; and a five-hundredth of the time that the attempt has lived, so that
a month of training takes some thousand lines and what a kill loses stays under a part in 500."""


def launched_at(environ: Mapping[str, str]) -> float:
    """When this process was launched, in seconds since 1970: by its launcher's word, or its own."""
    try:
        return float(environ[variables.LAUNCHED])
    except (KeyError, ValueError):
        return psutil.Process(os.getpid()).create_time()


class TimeBook:
    """The seconds of each part, on every rank; rank 0 writes them down.

    Args:
        launched: when this attempt was launched, in seconds since 1970.
        attempt: whose folder takes the lines; None: count only.
        clock: monotonic, in seconds; for tests.
    """

    def __init__(
        self,
        launched: float,
        attempt: Attempt | None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._attempt = attempt
        self._clock = clock
        self._launched = launched
        # The clock's reading at the launch.
        self._zero = clock() - max(0.0, now() - launched)
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._step = 0
        self._reached(0)
        self._due = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the launch."""
        return self._clock() - self._zero

    def begin(self, step: int) -> None:
        """All that went before was the start; steps go on from `step`."""
        self._seconds["start_up"] = self.elapsed
        self._reached(step)
        self._write()

    def add(self, part: str, seconds: float) -> None:
        """Account for `seconds` that have just passed."""
        self._seconds[part] += seconds

    @contextmanager
    def spent_on(self, part: str) -> Iterator[None]:
        """Account for the time that the block takes."""
        started = self._clock()
        try:
            yield
        finally:
            self.add(part, self._clock() - started)

    def boundary(self, step: int, *, must_write: bool = False) -> None:
        """`step` is completed; a line is written if one is due, or must be.

        It must at a save, which the next attempt may resume from.
        """
        self._reached(step)
        if must_write or self.elapsed >= self._due:
            self._write()

    def rolled_back(self, step: int) -> None:
        """Steps go on from `step`: two lines say where they stopped, and that.

        All since the last boundary (the guilty step, its replays, the restore) counts as one more
        step that is lost.
        """
        passed = self.since_boundary
        self._seconds = dict(self._seconds_then)
        self.add("step", passed)
        self._reached(self._step + 1)
        self._write()
        self._reached(step)
        self._write()

    @property
    def since_boundary(self) -> float:
        """Seconds since the last step boundary."""
        return self.elapsed - self._boundary

    def end(self, step: int) -> None:
        """The last line, at `step`."""
        self._reached(step)
        self._write()

    def _reached(self, step: int) -> None:
        self._step = step
        self._boundary = self.elapsed
        self._seconds_then = dict(self._seconds)

    def _write(self) -> None:
        """A line of how things stood at the last boundary."""
        self._due = self.elapsed + max(EVERY_SECONDS, self.elapsed / 500)
        if self._attempt is None:
            return
        parts = {f"{part}_seconds": round(s, 3) for part, s in self._seconds_then.items()}
        record = {
            "time": round(self._launched + self._boundary, 3),
            "step": self._step,
            "next_line_seconds": round(self._due - self.elapsed, 3),
            **parts,
        }
        try:
            self._attempt.append_jsonl(self._attempt.folder / "times.jsonl", record)
        except OSError as error:  # a full disk ends no run; the next line has it all
            log.debug("times.jsonl was not written: %s", error)
