"""Which rank makes the others wait, and in which phase: from own times, collectives left out.

Every rank waits in a step's collectives for the last one, so all steps are equally long; what tells
them apart is how late each comes there, which is its own time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from electra_dist.config.running import ResilienceConfig
from electra_dist.runtime.control import Control
from electra_dist.runtime.phases import PHASES, WAITING, Phases

log = logging.getLogger(__name__)

OWN_PHASES = tuple(phase for phase in PHASES if phase not in WAITING)

LEAST_SECONDS = 0.01
"""A step by which a rank is later than the others: less is no trouble, whatever the ratio."""


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """A rank that comes late."""

    rank: int
    phase: str
    """Where most of its delay comes from."""
    ratio: float
    """Its own time over that of the median of the other ranks."""
    late_seconds: float
    """A step, later than that median."""


def find_stragglers(own_seconds: Sequence[Sequence[float]], ratio: float) -> list[Straggler]:
    """Those whose own time is more than `ratio` times that of the others, the latest one first.

    Args:
        own_seconds: of each rank, a step, by OWN_PHASES.
        ratio: see there.
    """
    found = []
    for rank, mine in enumerate(own_seconds):
        others = [seconds for other, seconds in enumerate(own_seconds) if other != rank]
        if not others:
            return []
        usual = median(sum(seconds) for seconds in others)
        late = sum(mine) - usual
        if late < LEAST_SECONDS or sum(mine) <= ratio * usual:
            continue
        excess = [
            seconds - median(column)
            for seconds, column in zip(mine, zip(*others, strict=True), strict=True)
        ]
        found.append(
            Straggler(
                rank=rank,
                phase=OWN_PHASES[excess.index(max(excess))],
                ratio=sum(mine) / usual if usual else float("inf"),
                late_seconds=late,
            )
        )
    return sorted(found, key=lambda straggler: -straggler.late_seconds)


class Stragglers:
    """Compares the ranks every so many steps, and reports whoever is late anew.

    Args:
        phases: this rank's own times.
        control: between the ranks.
        hosts: of each rank, by rank.
        config: how often, and what is late.
    """

    def __init__(
        self, phases: Phases, control: Control, hosts: Sequence[str], config: ResilienceConfig
    ) -> None:
        self._phases, self._control, self._hosts = phases, control, hosts
        self._every, self._ratio = config.straggler_every, config.straggler_ratio
        self._then, self._step = dict(phases.own_seconds), 0
        self._named: set[tuple[int, str]] = set()

    def compare(self, step: int, report: Callable[..., object]) -> list[Straggler]:
        """At the boundary after `step`: where a comparison is due, who is late. Collective.

        A rank that was late in the same phase at the last comparison is not reported again. The
        first steps of an attempt, with all that happens once, are not compared.
        """
        if self._every is None or step % self._every or self._control.world_size == 1:
            return []
        self._phases.begin_step(step)  # what has passed since is counted
        now, num_steps = dict(self._phases.own_seconds), step - self._step
        mine = [
            0.0
            if phase in self._phases.of_device
            else (now[phase] - self._then[phase]) / max(1, num_steps)
            for phase in OWN_PHASES
        ]
        is_first = self._step == 0
        own_seconds = self._control.all_gather_floats(mine, name="own times of the ranks")
        self._then, self._step = now, step
        if is_first or num_steps <= 0:  # after a roll-back steps count from an earlier one
            return []
        found = find_stragglers(own_seconds, self._ratio)
        for late in found:
            if (late.rank, late.phase) not in self._named:
                self._report(step, late, report)
        self._named = {(late.rank, late.phase) for late in found}
        return found

    def _report(self, step: int, late: Straggler, report: Callable[..., object]) -> None:
        log.debug("step %d: %s", step, late)
        report(
            "straggler",
            step=step,
            ranks=[late.rank],
            host=self._hosts[late.rank],
            phase=late.phase,
            ratio=round(late.ratio, 2),
            late_seconds=round(late.late_seconds, 4),
        )
