"""Where the wall time of a run went, over all its attempts: the goodput ledger.

    |launch 1                      |save      killed|       |launch 2           |stop
    | start-up | training steps    | lost .. | tail | stopped | start-up | steps |

The parts come from attempts/NNNN/times.jsonl (`runtime/times.py`), are disjoint, and with `other`,
what no part accounts for, they are the whole. Between attempts the wall clock counts, within one a
monotonic clock that rank 0 has read. Steps after the one that a later attempt resumes from are
lost: whatever they took is `redone`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from electra_dist.launch.records import attempt_folders, number, read_json, read_lines

WORK = ("data_wait", "step", "save", "evaluation")
"""Parts of the loop: they become `redone` where a later attempt does their steps again."""

PARTS = ("step", "data_wait", "save", "evaluation", "start_up", "redone", "hang", "stopped")

WORDS = {
    "step": "training steps",
    "data_wait": "waiting for data",
    "save": "waiting for saves",
    "evaluation": "evaluation",
    "start_up": "start-up",
    "redone": "work that was lost and done again",
    "hang": "waiting for ranks that had died or hung",
    "stopped": "stopped, between attempts",
    "other": "anything else",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """What rank 0 had counted at a step boundary."""

    time: float
    """Seconds since 1970."""
    step: int
    seconds: Mapping[str, float]
    """Of each part since the launch."""
    next_line_seconds: float = 10.0
    """At the first step boundary after so long comes another line."""


@dataclass(frozen=True, kw_only=True)
class AttemptTimes:
    """One attempt."""

    number: int
    launched: float
    """Seconds since 1970."""
    ended: float | None
    """When it was last known to be alive, or seen to be gone; None: its lines say it."""
    is_over: bool
    """It said why it ended (exit.json), so rank 0 did nothing after its last line."""
    has_failed: bool = False
    """And that was an error: other ranks may have hung on until they were killed."""
    lines: Sequence[Line]


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """The split."""

    wall_seconds: float
    """From the first launch to the end of the last attempt, or to now."""
    seconds: dict[str, float]
    """Of each of PARTS and of `other`; their sum is the wall time."""

    @property
    def shares(self) -> dict[str, float]:
        """The same as shares of the whole."""
        whole = self.wall_seconds or 1.0
        return {part: value / whole for part, value in self.seconds.items()}


@dataclass(kw_only=True)
class _Book:
    """The steps that count so far, and what else has been accounted for."""

    kept: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    """From step, to step, seconds of each part of WORK; in order."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def went_on_from(self, step: int) -> None:
        """All that was done after `step` is lost, in equal parts where a line spans it."""
        while self.kept and self.kept[-1][1] > step:
            first, last, parts = self.kept.pop()
            lost = 1.0 if first >= step else (last - step) / (last - first)
            self.seconds["redone"] += lost * sum(parts.values())
            if lost < 1.0:
                left = {part: (1.0 - lost) * value for part, value in parts.items()}
                self.kept.append((first, step, left))

    def add(self, earlier: Line, later: Line) -> None:
        """What came between two lines of one attempt."""
        if later.step < earlier.step:
            self.went_on_from(later.step)
        gained = {part: _gain(earlier, later, part) for part in (*WORK, "hang", "start_up")}
        for part in ("hang", "start_up"):
            self.seconds[part] += gained.pop(part)
        self.kept.append((min(earlier.step, later.step), later.step, gained))

    def totals(self) -> dict[str, float]:
        kept = {part: sum(parts[part] for _, _, parts in self.kept) for part in WORK}
        return self.seconds | kept


def split(attempts: Sequence[AttemptTimes], now: float | None = None) -> Goodput | None:
    """The split of a run's wall time; None if no attempt says when it was launched.

    Args:
        attempts: oldest first.
        now: the time, if the last one is running; else the whole ends with it.
    """
    if not attempts:
        return None
    book = _Book()
    begin = end = attempts[0].launched
    for i, attempt in enumerate(attempts):
        start = max(attempt.launched, end)
        book.seconds["stopped"] += start - end
        following = attempts[i + 1].launched if i + 1 < len(attempts) else None
        is_running = following is None and now is not None
        lines = [x for x in attempt.lines if following is None or x.time <= following]
        end = now if is_running and now is not None else _end_of(attempt, lines, start)
        end = max(start, end if following is None else min(end, following))
        _account(book, attempt, lines, start, end, is_running)
    seconds = book.totals()
    seconds["other"] = (end - begin) - sum(seconds.values())
    return Goodput(wall_seconds=end - begin, seconds=seconds)


def _account(
    book: _Book,
    attempt: AttemptTimes,
    lines: Sequence[Line],
    start: float,
    end: float,
    is_running: bool,
) -> None:
    if not lines:
        book.seconds["start_up"] += end - start
        return
    # The launch may overlap the attempt before, by a clock that was set meanwhile.
    book.seconds["start_up"] += min(lines[0].seconds["start_up"], max(0.0, lines[0].time - start))
    book.went_on_from(lines[0].step)
    for earlier, later in pairwise(lines):
        book.add(earlier, later)
    tail = end - lines[-1].time
    if attempt.has_failed:
        book.seconds["hang"] += max(0.0, tail)
    if attempt.is_over or is_running or tail <= 0:
        return  # the tail is `other`
    # Killed. Lines come every so often: steps went on for at most as long without one, and the
    # rest of the time nothing happened.
    worked = min(tail, lines[-1].next_line_seconds)
    book.seconds["redone"] += worked
    book.seconds["hang"] += tail - worked


def _end_of(attempt: AttemptTimes, lines: Sequence[Line], start: float) -> float:
    last = lines[-1].time if lines else start
    if attempt.is_over and lines and not attempt.has_failed:
        return last
    return max(last, attempt.ended or 0.0)


def _gain(earlier: Line, later: Line, part: str) -> float:
    return max(0.0, later.seconds.get(part, 0.0) - earlier.seconds.get(part, 0.0))


def read_attempts(run: Path) -> list[AttemptTimes]:
    """What the folder of a run says about its attempts, oldest first.

    Attempts of versions that kept no times are left out.
    """
    gone: dict[Any, float] = {}
    for record in read_lines(run / "supervisor.jsonl"):
        gone.setdefault(record.get("attempt"), number(record.get("ended")) or 0.0)
    signs = _last_events(run)
    attempts = []
    for folder in attempt_folders(run):
        start = read_json(folder / "start.json")
        launched, claimed = number(start.get("launched")), number(start.get("claimed"))
        if launched is None or claimed is None:
            continue
        n, ended = int(folder.name), read_json(folder / "exit.json")
        attempts.append(
            AttemptTimes(
                number=n,
                launched=launched,
                ended=gone.get(n) or max(claimed, signs.get(n, 0.0)),
                is_over=bool(ended),
                has_failed=ended.get("reason") in ("failed", "hang"),
                lines=_lines(folder / "times.jsonl"),
            )
        )
    return attempts


def _lines(path: Path) -> list[Line]:
    lines = []
    for record in read_lines(path):
        time, step = number(record.get("time")), record.get("step")
        if time is None or not isinstance(step, int):
            continue
        seconds = {
            part: number(record.get(f"{part}_seconds")) or 0.0
            for part in (*WORK, "start_up", "hang")
        }
        due = number(record.get("next_line_seconds"))
        line = Line(time=time, step=step, seconds=seconds, next_line_seconds=due or 0.0)
        lines.append(line)
    return lines


def _last_events(run: Path) -> dict[int, float]:
    """When each attempt wrote its last event, in seconds since 1970."""
    last: dict[int, float] = {}
    for event in read_lines(run / "events.jsonl"):
        try:
            last[event["attempt"]] = datetime.fromisoformat(event["time"]).timestamp()
        except (KeyError, TypeError, ValueError):
            continue
    return last
