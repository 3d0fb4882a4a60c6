"""Signals set a flag; what is done about it all ranks decide together, at a step boundary."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from dataclasses import dataclass, replace
from types import FrameType

log = logging.getLogger(__name__)

BURST_SECONDS = 5.0
"""Signals this close to the first belong to it: schedulers and terminals send several at once."""


@dataclass(frozen=True, kw_only=True)
class StopRequest:
    """What the signals that have come so far ask for."""

    cause: str
    """Name of the first one."""
    interrupted_at: float | None
    """When the first SIGINT came."""
    deadline: float
    """When this process may be killed; infinity if nothing is known about that."""
    leave_at_once: bool = False
    """A person does not want to wait for the save."""


def after_signal(
    request: StopRequest | None, number: int, now: float, term_grace_seconds: float
) -> StopRequest:
    """The request once one more signal has come.

    The first one asks for a stop. SIGUSR1 is a warning and SIGINT a person: neither sets a
    deadline. SIGTERM does, whether it comes first or later: its sender follows it with SIGKILL.
    Whatever comes later changes nothing else, but for a second SIGINT more than BURST_SECONDS after
    the first one: then the process leaves at once, unsaved.

    Args:
        request: what the earlier signals asked for; None before the first.
        number: of the signal.
        now: a monotonic clock, in seconds.
        term_grace_seconds: how long after SIGTERM a process still lives.
    """
    is_interrupt = number == signal.SIGINT
    deadline = now + term_grace_seconds if number == signal.SIGTERM else math.inf
    if request is None:
        return StopRequest(
            cause=signal.Signals(number).name,
            interrupted_at=now if is_interrupt else None,
            deadline=deadline,
        )
    request = replace(request, deadline=min(request.deadline, deadline))
    if not is_interrupt:
        return request
    if request.interrupted_at is None:
        return replace(request, interrupted_at=now)
    is_later = now - request.interrupted_at > BURST_SECONDS
    return replace(request, leave_at_once=request.leave_at_once or is_later)


class StopSignals:
    """Remembers that SIGTERM, SIGUSR1 or SIGINT has come: `after_signal` says what it means."""

    def __init__(self, term_grace_seconds: float = 30.0) -> None:
        self._term_grace_seconds = term_grace_seconds
        self._request: StopRequest | None = None

    @property
    def received(self) -> str | None:
        """Name of the first signal, or None."""
        return self._request.cause if self._request else None

    @property
    def deadline(self) -> float:
        """When this process may be killed, by time.monotonic(); infinity if nobody said so."""
        return self._request.deadline if self._request else math.inf

    def install(self) -> None:
        """Handle the three signals from now on (main thread only)."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._request = after_signal(
            self._request, number, time.monotonic(), self._term_grace_seconds
        )
        if self._request.leave_at_once:
            os._exit(1)
