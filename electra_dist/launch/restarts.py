"""Restart, or stop? Decided on plain values: how the attempts of one supervisor have ended."""

from collections.abc import Sequence
from dataclasses import dataclass

FIRST_DELAY_SECONDS = 2.0
"""Before the first restart; twice as long before each further one without a new checkpoint."""

LONGEST_DELAY_SECONDS = 300.0

STOPPED, FAILED, USER_MISTAKE = 75, 1, 2


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one launch of all ranks ended, as the run folder tells it."""

    attempt: int | None
    """That it claimed; None: it ended before."""
    reason: str | None
    """Of its exit.json; None: it crashed."""
    exit_code: int
    """Of its exit.json; of its processes where there is none."""
    has_new_checkpoint: bool
    """The newest checkpoint is one of a later step than before the launch."""
    is_superseded: bool = False
    """A later attempt than its own has claimed the run folder."""
    stop_asked: str | None = None
    """Who wanted the run to end: a signal's name, or `electra-dist stop`."""
    world_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the user allows."""

    max_restarts: int
    """Restarts in a row without a new checkpoint."""
    min_world_size: int | None = None
    """Ranks that a restart may go on with; None: no fewer than before."""


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Start the ranks again."""

    delay_seconds: float
    world_size: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Leave."""

    exit_code: int
    why: str
    needs_nodes: bool = False
    """The allocation has lost nodes: the job may go on in another one."""


def next_action(history: Sequence[Ended], limits: Limits, usable_ranks: int) -> Restart | Stop:
    """What to do after the last launch of `history`.

    Args:
        history: all launches of this supervisor, oldest first; at least one.
        limits: see there.
        usable_ranks: as many ranks as can be started now.
    """
    last = history[-1]
    if last.reason == "superseded" or last.is_superseded:
        return Stop(exit_code=FAILED, why="a later attempt has taken over the run folder")
    if last.reason in ("finished", "asked"):
        return Stop(exit_code=0, why=last.reason)
    if last.reason == "stopped":
        return Stop(exit_code=STOPPED, why=last.reason)
    if last.exit_code == USER_MISTAKE:
        return Stop(exit_code=USER_MISTAKE, why="a restart would meet the same mistake")
    how = {"failed": "failed", "hang": "hung"}.get(last.reason or "", "crashed")
    if last.stop_asked is not None:
        why = f"{how} after {last.stop_asked} had asked it to stop"
        return Stop(exit_code=FAILED, why=why)
    if limits.max_restarts == 0:
        return Stop(exit_code=FAILED, why=f"{how}, and no restarts are allowed")
    fruitless = 0
    while fruitless < len(history) and not history[-1 - fruitless].has_new_checkpoint:
        fruitless += 1
    if fruitless > limits.max_restarts:
        why = f"{how}: {fruitless} attempts in a row have ended without a new checkpoint"
        return Stop(exit_code=FAILED, why=why)
    if usable_ranks < last.world_size and usable_ranks < (limits.min_world_size or last.world_size):
        least = limits.min_world_size or last.world_size
        why = f"{how}, and only {usable_ranks} ranks are left where {least} are needed"
        return Stop(exit_code=FAILED, why=why, needs_nodes=True)
    delay = FIRST_DELAY_SECONDS * 2.0 ** max(0, fruitless - 1)
    return Restart(
        delay_seconds=min(delay, LONGEST_DELAY_SECONDS), world_size=usable_ranks, why=how
    )
