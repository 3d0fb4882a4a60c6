"""What the main thread of a rank is doing, and for how long: a stack of named phases.

    loop | data | forward | backward | reduce | forward | ... | optimizer | agree | optimizer | loop

A phase's own time leaves out the phases inside it. Those in WAITING are collectives, or wait for
other ranks: time in them says nothing about this rank. Entering and leaving costs some 3 us.

Times are the host's. On CUDA a kernel that has been launched still runs when its phase is left: the
host catches up where it needs a number, which is in `backward`, `optimizer` or `reduce`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

PHASES = (
    "loop",  # between the others: bookkeeping
    "data",
    "forward",
    "backward",
    "optimizer",
    "evaluate",
    "record",  # metrics and events
    "save",  # the copy, or all of it where saving is not asynchronous
    "restore",
    "reduce",  # gradients, or weights, are exchanged
    "agree",  # a small exchange between ranks, such as the one all-reduce of a step
    "commit",  # waiting for the writers of all ranks
)

WAITING = frozenset({"reduce", "agree", "commit"})
"""Phases in which a rank waits for others."""


def phases_of_device(device_type: str, zero_stage: int) -> frozenset[str]:
    """Phases in which a host may wait for its device, and so for the ranks that this waits for.

    None on a CPU. On CUDA all ranks are as long in them as the last one: added to what a rank did
    before, they would make all alike. ZeRO-3 waits for gathered weights in the forward pass too.
    """
    if device_type == "cpu":
        return frozenset()
    return frozenset({"backward", "optimizer"} | ({"forward"} if zero_stage == 3 else set()))


NUM_MEASURED = 500
"""Newest durations that are kept of each phase."""


class Current(NamedTuple):
    """What the main thread is in."""

    phase: str
    step: int
    """The step that is being made, from 1; 0 before the first."""
    since: float
    """By the clock: when it was entered, or returned to."""
    number: int
    """Of changes of phase in this step: where ranks do the same, the lowest is behind."""
    outer: str = "loop"
    """The phase that it is in."""


class Phases:
    """The clock of the phases of one thread; others may read `current` and `durations`.

    Args:
        clock: monotonic, in seconds; for tests.
        of_device: see `phases_of_device`.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        of_device: frozenset[str] = frozenset(),
    ) -> None:
        self.clock, self.of_device = clock, of_device
        self.listeners: list[Callable[[Current], None]] = []
        """Each is called whenever a phase is entered, inside it, and whenever it is left."""
        self.on_enter: list[Callable[[Current], None]] = []
        """Each is called when a phase is entered, after the listeners; it may take its time."""
        self.own_seconds = dict.fromkeys(PHASES, 0.0)
        """Of each phase since the start, without the phases inside."""
        self.durations = {phase: deque[float](maxlen=NUM_MEASURED) for phase in PHASES}
        """Of each phase from entering it to leaving it, the newest ones."""
        self.current = Current("loop", 0, clock(), 0)

    def begin_step(self, step: int) -> None:
        """From now on `step` is made, counted from 1."""
        self._change(self.current.phase, step, 0, self.current.outer)

    def waiting_seconds(self) -> float:
        """In all phases of WAITING that are over, since the start."""
        return sum(self.own_seconds[phase] for phase in WAITING)

    @contextmanager
    def enter(self, phase: str) -> Iterator[None]:
        """The block is a phase, inside whatever phase it is entered from."""
        left = self.current
        entered = self._change(phase, left.step, left.number + 1, outer=left.phase)
        try:
            for react in self.on_enter:
                react(self.current)
            yield
        finally:
            here = self.current
            now = self._change(left.phase, here.step, here.number + 1, outer=left.outer)
            self.durations[phase].append(now - entered)

    def _change(self, phase: str, step: int, number: int, outer: str) -> float:
        now = self.clock()
        self.own_seconds[self.current.phase] += now - self.current.since
        self.current = Current(phase, step, now, number, outer)
        for listen in self.listeners:
            listen(self.current)
        return now
