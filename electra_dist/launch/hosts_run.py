"""Runs the launcher of several hosts, and hands a request to stop to the ranks.

No signal gets through whole: deepspeed's launcher ends ranks 30 s after SIGTERM and dies of
SIGUSR1, ssh hands none on. So the first one becomes the file RUN/STOP, which rank 0 sees at a step
boundary, however long the save then takes; a later one ends the launcher and its ranks.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from electra_dist.launch.local import (
    STOPPED,
    USER_MISTAKE,
    Signals,
    forwarded_signals,
    run_commands,
)
from electra_dist.launch.records import attempt_folder, newest_attempt, read_json

log = logging.getLogger(__name__)

GRACE_SECONDS = 60.0
"""How long the other hosts' launchers may take to end after one has failed."""

KILL_SECONDS = 60.0
"""How long a launcher may take after SIGTERM: deepspeed's gives its ranks 30 s."""

BURST_SECONDS = 5.0
"""Signals this close to the first belong to it, as in resilience.preempt."""

END_SECONDS = 30.0


class StopThroughFile:
    """From the signals that came to what is done about them; `poll` is called a few times a second.

    Args:
        run: RUN.
        received: signals of this process.
        ends: commands that end the ranks, before the launcher itself is told to end.
    """

    def __init__(self, run: Path, received: Signals, ends: Sequence[Sequence[str]] = ()) -> None:
        self._run = run
        self._received = received
        self._ends = ends
        self._first_attempt = newest_attempt(run) + 1
        self._asked_at: float | None = None
        self.handed_on = Signals()
        """What the launcher itself shall get."""

    @property
    def attempt(self) -> Path | None:
        """The folder of the attempt that these ranks have claimed, if they have."""
        is_claimed = newest_attempt(self._run) >= self._first_attempt
        return attempt_folder(self._run, self._first_attempt) if is_claimed else None

    @property
    def has_asked(self) -> bool:
        """Whether a signal has come."""
        return self._asked_at is not None

    def poll(self) -> bool:
        """Act on new signals; False, for `run_commands`: nothing is lost."""
        while self._received.pending:
            number = self._received.pending.pop(0)
            if self._asked_at is None:
                self._asked_at = time.monotonic()
                log.warning(
                    "%s: asking the run to save and finish; once more to end it", number.name
                )
            elif time.monotonic() > self._asked_at + BURST_SECONDS:
                self._end()
        # Again and again: an attempt that starts removes the file of the one before.
        if self._asked_at is not None and self.attempt is not None:
            with suppress(OSError):  # a full disk: the next time, then
                (self._run / "STOP").touch()
        return False

    def _end(self) -> None:
        for command in self._ends:
            try:
                subprocess.run(command, stdin=subprocess.DEVNULL, timeout=END_SECONDS, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                log.error("%s", error)
        self.handed_on.pending.append(signal.SIGTERM)


def run_on_hosts(
    commands: Sequence[list[str]],
    environ: Mapping[str, str],
    run: Path,
    ends: Sequence[Sequence[str]] = (),
) -> int:
    """Run the commands at once, until all have ended.

    Args:
        commands: of the launcher: one in all, or one a host.
        environ: of each.
        run: RUN.
        ends: see `StopThroughFile`.

    Returns:
        0 if all ended well; 75 if a signal stopped the run, state saved; 2 after a mistake of the
        user; else 1.
    """
    with forwarded_signals() as received:
        stop = StopThroughFile(run, received, ends)
        codes = run_commands(
            commands,
            [environ] * len(commands),
            grace_seconds=GRACE_SECONDS,
            kill_seconds=KILL_SECONDS,
            signals=stop.handed_on,
            is_lost=stop.poll,
            program=commands[0][0],
        )
    ended = read_json(stop.attempt / "exit.json") if stop.attempt is not None else {}
    if ended.get("reason") == "stopped" or (stop.has_asked and ended.get("reason") == "asked"):
        return STOPPED
    if USER_MISTAKE in codes and not ended:
        return USER_MISTAKE
    return int(any(codes))
