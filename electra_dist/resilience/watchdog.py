"""Does a rank hang, and which one? Decided on plain values; `WatchdogThread` asks and acts.

limits      how long a phase may last, learnt from this run's own durations
verdict     who keeps the others waiting, from what each rank says of itself
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from electra_dist.config.running import ResilienceConfig
from electra_dist.resilience.deadline import slow_one
from electra_dist.runtime.control import name_ranks
from electra_dist.runtime.phases import WAITING, Current

NUM_BEFORE_LEARNT = 5
"""Durations of a phase before they say how long it may last; until then the start-up time does."""


def limits(
    durations: Mapping[str, Sequence[float]],
    config: ResilienceConfig,
    waiting: Collection[str] = WAITING,
) -> dict[str, float]:
    """Seconds that each phase may last on this rank before it counts as a hang.

    `hang_factor` times the slow ones of the phase itself (99 % were shorter), never less than
    `hang_floor_seconds`; `hang_start_up_seconds` while fewer than five were measured. The first of
    a kind compiles and allocates: it says nothing about later ones.

    A rank that waits for others must grant them the longest of their phases: all ranks run the same
    ones, so it goes by its own. It does in `waiting`; see `limit` for what it waits in.
    """
    floor = config.hang_floor_seconds or 0.0
    allowed = {
        phase: max(floor, config.hang_factor * slow_one(seconds[1:], otherwise=0.0))
        for phase, seconds in durations.items()
    }
    longest = max(allowed.values())
    for phase, seconds in durations.items():
        if phase in waiting:
            allowed[phase] = longest
        if len(seconds) < NUM_BEFORE_LEARNT and phase != "loop":  # which is never entered
            allowed[phase] = max(allowed[phase], config.hang_start_up_seconds)
    return allowed


def limit(
    current: Current,
    durations: Mapping[str, Sequence[float]],
    config: ResilienceConfig,
    waiting: Collection[str] = WAITING,
) -> float:
    """Of the phase that a rank is in.

    One that waits in the middle of another phase (reading a checkpoint, the first evaluation) must
    grant the others that phase too.
    """
    allowed = limits(durations, config, waiting)
    if current.phase in WAITING:
        return max(allowed[current.phase], allowed[current.outer])
    return allowed[current.phase]


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a rank was when the hang was found."""

    rank: int
    host: str
    step: int
    number: int
    """Of changes of phase in the step."""
    phase: str
    seconds: float
    """For so long."""
    answers: bool
    """It said so itself; else a neighbour has read its last sign of life."""

    @property
    def waits(self) -> bool:
        """It waits for other ranks."""
        return self.answers and self.phase in WAITING

    def words(self) -> str:
        """`rank 3 (node7) does not answer, last seen in data of step 12`."""
        doing = "in" if self.answers else "does not answer, last seen in"
        return f"rank {self.rank} ({self.host}) {doing} {self.phase} of step {self.step}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Who hangs."""

    guilty: tuple[Where, ...]
    """Who keeps the others waiting; empty: all wait for one another."""
    unknown: tuple[int, ...]
    """Ranks of which nobody knows anything: they, or their whole node, are gone or stopped."""

    def words(self) -> str:
        """For the event and the log."""
        parts = [where.words() for where in self.guilty[:4]]
        if self.unknown:
            parts.append(f"no sign of {name_ranks(self.unknown)}")
        if len(self.guilty) > 4:
            parts.append(f"and {len(self.guilty) - 4} more")
        return "; ".join(parts) or "all ranks wait for one another"


def verdict(found: Mapping[int, Where], world_size: int) -> Verdict:
    """Who does not answer, else who is not waiting, else who is behind the others.

    Args:
        found: what is known of each rank, by rank.
        world_size: ranks of the run.
    """
    unknown = tuple(rank for rank in range(world_size) if rank not in found)
    silent = [where for where in found.values() if not where.answers]
    busy = [where for where in found.values() if where.answers and not where.waits]
    if silent or unknown:
        # A rank that is stopped makes all others wait; one that is busy beside it is a coincidence.
        return Verdict(guilty=tuple(silent), unknown=unknown)
    if busy:
        return Verdict(guilty=_furthest_behind(busy), unknown=())
    behind = _furthest_behind(found.values())
    return Verdict(guilty=() if len(behind) == len(found) else behind, unknown=())


def _furthest_behind(some: Collection[Where]) -> tuple[Where, ...]:
    """Ranks that compute the same pass through the same phases, but for a pass that one may lack.

    It matters where collectives hide inside another phase (a CUDA kernel that waits for its peers):
    then everyone seems busy.
    """
    places = {where.rank: (where.step, where.number) for where in some}
    return tuple(where for where in some if places[where.rank] == min(places.values()))


def known(records: Mapping[int, dict[str, Any]]) -> dict[int, Where]:
    """What the ranks wrote of themselves and of their neighbours, as one picture.

    Args:
        records: by the rank that wrote it: `own` and `neighbours`, each as `Where`'s fields.
    """
    found: dict[int, Where] = {}
    for record in records.values():
        for neighbour in record["neighbours"]:
            found[neighbour["rank"]] = Where(**neighbour, answers=False)
    for record in records.values():
        found[record["own"]["rank"]] = Where(**record["own"], answers=True)
    return dict(sorted(found.items()))
