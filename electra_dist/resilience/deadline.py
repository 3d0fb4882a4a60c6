"""A run that knows when it must be gone picks the last safe step by itself: pure arithmetic.

    now                                                        the end - margin
     |-- next step --|-- an evaluation, if due --|-- saves --|

Going on is safe if all of that fits. Else this step is the last one: it is saved, and the run
leaves as stopped. Times are the slow ones of this very run (99 % are shorter).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SAVE_BYTES_PER_SECOND = 100e6
"""A slow shared disk, for the first save of a run, which nobody has measured yet."""

SAVE_OVERHEAD_SECONDS = 2.0
"""Manifest, fsyncs, the other ranks' files: what a save costs even with nothing in it."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long the slow ones take."""

    step_seconds: float
    save_seconds: float
    """From the copy to the commit."""
    evaluation_seconds: float


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """What lies before a run at a step boundary if it goes on."""

    evaluates_next: bool
    """After the next step an evaluation is due."""
    num_saves: int
    """Saves in flight, and one that is due at this boundary."""


@dataclass(frozen=True, kw_only=True)
class TimeSigns:
    """What rank 0 tells the others about its clock."""

    is_up: bool
    """This is the last safe step."""
    hurry: bool
    """There is no time left for an evaluation before the save."""


def time_signs(seconds_left: float, pace: Pace, ahead: Ahead) -> TimeSigns:
    """Whether to stop at this boundary, and whether the save may wait for an evaluation.

    Args:
        seconds_left: until the last save must be done; infinity if nobody said so.
        pace: see there.
        ahead: see there.
    """
    leaving = (ahead.num_saves + 1) * pace.save_seconds
    going_on = (
        pace.step_seconds + (pace.evaluation_seconds if ahead.evaluates_next else 0.0) + leaving
    )
    return TimeSigns(
        is_up=seconds_left < going_on, hurry=seconds_left < pace.evaluation_seconds + leaving
    )


def slow_one(seconds: Sequence[float], otherwise: float) -> float:
    """The 99th percentile of what was measured (the largest of under 100); `otherwise` of none."""
    if not seconds:
        return otherwise
    return sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1]


def guessed_save_seconds(num_bytes: float) -> float:
    """What a save of so many bytes may take, before one has been measured."""
    return SAVE_OVERHEAD_SECONDS + num_bytes / SAVE_BYTES_PER_SECOND


def guessed_evaluation_seconds(step_seconds: float, rows_a_step: int, num_rows: int) -> float:
    """What an evaluation of `num_rows` rows may take, before one has been measured.

    A row that is evaluated costs less than one that is trained on, which has a backward pass too.
    """
    return step_seconds * math.ceil(num_rows / rows_a_step)
