"""Progress of long work on bytes: a bar on a terminal, else a line every half minute; to stderr."""

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO

LOG_SECONDS = 30.0
"""Between two lines, where stderr is no terminal."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a phase of the work is."""

    phase: str
    """In words: "encoding"."""
    num_bytes: int
    """Done so far, what was found done included."""
    total_bytes: int | None
    """None where nobody knows."""
    found_bytes: int = 0
    """Done by an earlier attempt: no part of the rate."""
    num_tokens: int = 0
    """Made by this attempt."""


class ProgressDisplay:
    """Called with a `Progress` now and then; a context, so that the bar goes in the end."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._phase = ""
        self._started = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "ProgressDisplay":
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
            console = Console(file=self._stream)
            self._bar = Bar(*columns, TextColumn("{task.fields[rate]}"), console=console)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Shows it, if it is time to."""
        now = time.monotonic()
        if progress.phase != self._phase:
            self._phase, self._started = progress.phase, now
            if self._bar is not None:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(progress.phase, total=None, rate="")
        rate = rate_text(progress, now - self._started)
        if self._bar is not None:
            self._bar.update(
                self._task, total=progress.total_bytes, completed=progress.num_bytes, rate=rate
            )
        elif now - self._last >= LOG_SECONDS:
            self._last = now
            line = f"{progress.phase}: {_amount(progress)}, {rate}"
            print(line, file=self._stream, flush=True)


def rate_text(progress: Progress, seconds: float) -> str:
    """Bytes and tokens a second and the time that is left, as far as they are known."""
    fresh = progress.num_bytes - progress.found_bytes
    if seconds <= 0 or fresh <= 0:
        return "starting"
    words = [f"{fresh / seconds / 1e6:,.2f} MB/s"]
    if progress.num_tokens:
        words.append(f"{progress.num_tokens / seconds:,.0f} tokens/s")
    if progress.total_bytes is not None:
        left = max(progress.total_bytes - progress.num_bytes, 0) / (fresh / seconds)
        words.append(f"{_duration(left)} left")
    return ", ".join(words)


def _amount(progress: Progress) -> str:
    done = f"{progress.num_bytes / 1e6:,.0f}"
    if not progress.total_bytes:
        return f"{done} MB"
    share = min(progress.num_bytes / progress.total_bytes, 1.0)
    return f"{done} of {progress.total_bytes / 1e6:,.0f} MB ({share:.0%})"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
