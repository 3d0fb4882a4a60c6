"""RUN/ledger.jsonl read back: which steps count, and whether the records can be true.

No torch: a login node reads this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from electra_dist.data.order import Skips, unskipped
from electra_dist.errors import UserError
from electra_dist.runtime.files import parse_line
from electra_dist.train.ledger import chain


class LedgerProblem(Exception):
    """A record that cannot be: the message says where it stands and why."""


class Step(NamedTuple):
    """One update, as a line of the ledger has it."""

    line: int
    """From 1."""
    checksum: int
    skips: Skips
    """In force when it was made."""


@dataclass(kw_only=True)
class History:
    """What the ledger says was done. Update u, counted from 0, used positions [u G, (u + 1) G)."""

    global_batch_size: int
    """G."""
    born_with: Skips
    """The `data.skips` of the run."""
    steps: list[Step] = field(default_factory=list)
    """Update by update: the record that counts, which is the last one."""
    repeated: dict[int, list[Step]] = field(default_factory=dict)
    """Earlier records of updates that were done again, by update."""
    resumes: list[tuple[int, int]] = field(default_factory=list)
    """Line, and update that steps went on from, of each start, resume and roll-back."""
    skips: Skips = ()
    """In force now."""
    attempt: int = 0
    half_lines: int = 0
    """Lines cut off by a crash or a full disk: no records, and not in the chain."""

    @property
    def position(self) -> int:
        """Used positions."""
        return len(self.steps) * self.global_batch_size

    @property
    def num_recorded(self) -> int:
        """Updates that any record is of, also those that were rolled back and not done again."""
        return max(len(self.steps), max(self.repeated, default=-1) + 1)

    def records(self, update: int) -> list[Step]:
        """All records of an update, the one that counts last."""
        return [*self.repeated.get(update, ()), *self.steps[update : update + 1]]

    def skips_before(self, update: int, skips: Skips) -> Skips:
        """The intervals of `skips` that lie before the positions of `update`: these are settled."""
        if update == 0:
            return ()
        last_used = np.array([update * self.global_batch_size - 1], np.int64)
        frontier = int(unskipped(last_used, self.steps[update - 1].skips)[0])
        return tuple(interval for interval in skips if interval[0] <= frontier)

    def add(self, line: int, record: dict[str, Any]) -> None:
        """Take the next record.

        Raises:
            LedgerProblem: it does not follow from those before it.
        """
        kind = record["kind"]
        if kind not in ("resume", "step"):
            raise LedgerProblem(f"line {line}: kind {kind!r} is unknown")
        if kind == "resume":
            self._resume(line, record)
        elif not self.resumes:
            raise LedgerProblem(f"line {line}: the ledger starts with a step, not with a resume")
        else:
            self._step(line, record)

    def _resume(self, line: int, record: dict[str, Any]) -> None:
        update, position = record["step"], record["position"]
        skips: Skips = tuple((first, last) for first, last in record.get("skipped", self.born_with))
        # A fork brings the records of the run it left, and counts its own attempts from 1.
        if record["attempt"] < self.attempt and "forked_from" not in record:
            raise LedgerProblem(
                f"line {line}: attempt {record['attempt']} comes after attempt {self.attempt}"
            )
        if not 0 <= update <= len(self.steps):
            raise LedgerProblem(
                f"line {line}: goes on from step {update}, but only {len(self.steps)} steps are "
                "recorded before it"
            )
        if position != update * self.global_batch_size:
            raise LedgerProblem(
                f"line {line}: step {update} ends at position "
                f"{update * self.global_batch_size:,}, not at {position:,}"
            )
        settled = self.steps[update - 1].skips if update else ()
        if self.skips_before(update, skips) != self.skips_before(update, settled):
            raise LedgerProblem(
                f"line {line}: skips other positions before step {update} than the steps did"
            )
        if not all(_is_within(interval, skips) for interval in self.born_with):
            raise LedgerProblem(f"line {line}: does not skip what data.skips of the run says")
        if not self.resumes and skips != self.born_with:
            raise LedgerProblem(f"line {line}: skips more than data.skips of the run says")
        for number in range(update, len(self.steps)):
            self.repeated.setdefault(number, []).append(self.steps[number])
        del self.steps[update:]
        self.attempt, self.skips = record["attempt"], skips
        self.resumes.append((line, update))

    def _step(self, line: int, record: dict[str, Any]) -> None:
        if record["attempt"] != self.attempt:
            raise LedgerProblem(
                f"line {line}: attempt {record['attempt']} has no resume record before its steps"
            )
        expected = len(self.steps) + 1, self.position, self.global_batch_size
        found = record["step"], record["position"], record["samples"]
        if found != expected:
            raise LedgerProblem(
                f"line {line}: step {found[0]} used {found[2]} samples from position {found[1]:,} "
                f"on, but step {expected[0]} with {expected[2]} samples from position "
                f"{expected[1]:,} on must follow"
            )
        self.steps.append(Step(line, int(record["checksum"], 16), self.skips))


def read_history(path: Path, global_batch_size: int, born_with: Skips) -> History:
    """The history in a ledger, its chain of hashes checked.

    Raises:
        LedgerProblem: the first line that was changed, moved, taken out, or cannot be true.
        UserError: there is no ledger.
    """
    history = History(global_batch_size=global_batch_size, born_with=born_with)
    last = ""
    for line, record in _records(path):
        if record is None:
            history.half_lines += 1
            continue
        found = record.pop("chain", None)
        last = chain(last, record)
        if found != last:
            raise LedgerProblem(
                f"line {line}: its hash does not follow from the line before it, so one of the two "
                "was changed, moved, or stood beside one that is gone"
            )
        try:
            history.add(line, record)
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerProblem(f"line {line}: is no record of a ledger ({error!r})") from None
    return history


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, parse_line(line)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; give the folder that pretrain got as --out"
        ) from None


def _is_within(interval: tuple[int, int], skips: Skips) -> bool:
    return any(first <= interval[0] and interval[1] <= last for first, last in skips)
