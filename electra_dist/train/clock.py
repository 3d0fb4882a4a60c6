"""The clock of a run: where its time goes, how fast it is, and how much time is left."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from electra_dist.resilience.deadline import (
    Ahead,
    Pace,
    TimeSigns,
    guessed_evaluation_seconds,
    guessed_save_seconds,
    slow_one,
    time_signs,
)
from electra_dist.resilience.preempt import StopSignals
from electra_dist.runtime.files import read_json_lines
from electra_dist.runtime.times import TimeBook

if TYPE_CHECKING:
    from electra_dist.train.join import Joined

NUM_MEASURED = 1000
"""Newest steps, saves and evaluations that the pace is taken from."""


class RunClock:
    """Of one rank; that of rank 0 writes times.jsonl and decides when the time is up.

    Args:
        book: where the seconds go.
        stop_signals: a SIGTERM sets a deadline.
        end: when the job ends, by time.monotonic(); infinity if nobody says so.
        margin_seconds: to be gone before the end.
        guessed_save_seconds: for as long as no save of the run is measured.
        rows_a_step: the global batch size.
        rows_an_evaluation: held-out rows.
        saves: seconds of earlier attempts' saves.
    """

    def __init__(
        self,
        book: TimeBook,
        stop_signals: StopSignals,
        *,
        end: float = math.inf,
        margin_seconds: float,
        guessed_save_seconds: float,
        rows_a_step: int,
        rows_an_evaluation: int,
        saves: Sequence[float] = (),
    ) -> None:
        self.book = book
        self.is_up = False
        """What `signs` said last: the reason to give where no signal came."""
        self._stop_signals = stop_signals
        self._end, self._margin_seconds = end, margin_seconds
        self._guessed_save_seconds = guessed_save_seconds
        self._rows = rows_a_step, rows_an_evaluation
        self._num_steps = 0
        self._steps: deque[float] = deque(maxlen=NUM_MEASURED)
        self._saves: deque[float] = deque(saves, maxlen=NUM_MEASURED)
        self._evaluations: deque[float] = deque(maxlen=NUM_MEASURED)

    def stepped(self, *, data_wait_seconds: float, step_seconds: float) -> None:
        """Account for a step, whose wait for data is its beginning."""
        self.book.add("data_wait", data_wait_seconds)
        self.book.add("step", step_seconds - data_wait_seconds)
        self._num_steps += 1
        if self._num_steps == 2:
            self._steps.clear()  # the first one allocates and compiles, and is not met again
        self._steps.append(step_seconds)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Training waits for a save."""
        with self.book.spent_on("save"):
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Training waits for an evaluation."""
        started = time.monotonic()
        with self.book.spent_on("evaluation"):
            yield
        self._evaluations.append(time.monotonic() - started)

    def saved(self, seconds: Sequence[float]) -> None:
        """Learn how long saves took, from the copy to the commit."""
        self._saves.extend(seconds)

    @property
    def pace(self) -> Pace:
        """How long the slow ones take."""
        step = slow_one(self._steps, otherwise=0.0)
        guess = guessed_evaluation_seconds(step, *self._rows)
        return Pace(
            step_seconds=step,
            save_seconds=slow_one(self._saves, otherwise=self._guessed_save_seconds),
            evaluation_seconds=slow_one(self._evaluations, otherwise=guess),
        )

    def broke_off(self, step: int) -> None:
        """An error ends the attempt after `step` steps: write down the time since the last one.

        One more step may have been under way; beyond that, this rank waited for one that had died
        or hung.
        """
        passed = self.book.since_boundary
        worked = min(passed, self.pace.step_seconds) if self._steps else passed
        self.book.add("step", worked)
        self.book.add("hang", passed - worked)
        self.book.end(step)

    def signs(self, ahead: Ahead) -> TimeSigns:
        """Whether this step is the last safe one, by this rank's clock."""
        end, term = self._end - self._margin_seconds, self._stop_signals.deadline
        left = min(end, term) - time.monotonic()
        if left == math.inf:
            return TimeSigns(is_up=False, hurry=False)
        signs = time_signs(left, self.pace, ahead)
        self.is_up = signs.is_up
        return signs


def make_clock(joined: Joined, parameter_shapes: Mapping[str, tuple[int, ...]]) -> RunClock:
    """The clock of this rank: rank 0's knows the end of the job and how long saves took."""
    config, attempt, is_leader = joined.config, joined.attempt, joined.groups.world.is_leader
    num_elements = sum(math.prod(shape) for shape in parameter_shapes.values())
    events = read_json_lines(attempt.run_folder / "events.jsonl") if is_leader else []
    return RunClock(
        TimeBook(joined.launched, attempt if is_leader else None),
        joined.stop_signals,
        end=math.inf if joined.end is None else time.monotonic() + joined.end - time.time(),
        margin_seconds=config.resilience.end_margin_seconds,
        # Three float32 an element: the weight and two moments.
        guessed_save_seconds=guessed_save_seconds(12.0 * num_elements),
        rows_a_step=config.batch.global_batch_size,
        rows_an_evaluation=config.metrics.eval_num_samples,
        saves=[event["seconds"] for event in events if event.get("event") == "save"],
    )
