"""Signals set a flag; what is done about it all ranks decide together, at a step boundary."""

from __future__ import annotations

import logging
import os
import signal
import time
from types import FrameType

log = logging.getLogger(__name__)

BURST_SECONDS = 5.0
"""Signals this close to the first belong to it: schedulers and terminals send several at once."""


class StopSignals:
    """Remembers that SIGTERM, SIGUSR1 or SIGINT has come.

    A later second SIGINT (a person who does not want to wait) leaves at once; every other further
    signal changes nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the first signal, or None."""
        self._first_at = 0.0

    def install(self) -> None:
        """Handle the three signals from now on (main thread only)."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
            self._first_at = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._first_at > BURST_SECONDS:
            os._exit(1)
