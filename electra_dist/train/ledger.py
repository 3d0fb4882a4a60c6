"""RUN/ledger.jsonl: the positions of each step, and a checksum of what the engines were given.

    {"attempt": 1, "kind": "resume", "step": 0, "position": 0, "skipped": [], "chain": ...}
    {"attempt": 1, "kind": "step", "step": 1, "position": 0, "samples": 32, "checksum": ..., ...}

Each record holds the hash of the one before it, so that none can be changed or taken out unseen.
`resume` says where steps go on from: at the start of an attempt, and after a roll-back within one.
What later steps repeat, and which intervals of positions they leave out, is thereby declared.
Positions count the used ones. `corpus audit` reads all of it (audit.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from typing import Any

from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import read_json_lines
from electra_dist.train.state import RunState

log = logging.getLogger(__name__)

SETTLE_SECONDS = 30.0
"""How long a run that ends waits for a full disk to take the last records of its ledger."""


class Ledger:
    """Appends to the chain (rank 0).

    A full disk ends no run: a record that it did not take is said loudly and written before the
    next one.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._path = attempt.run_folder / "ledger.jsonl"
        records = read_json_lines(self._path)
        self._last = records[-1]["chain"] if records else ""
        self._unwritten: list[dict[str, Any]] = []
        resumes = [record for record in records if record.get("kind") == "resume"]
        self._declared: dict[str, Any] | None = resumes[-1] if resumes else None

    def declared(self) -> dict[str, Any] | None:
        """The newest record of kind `resume` that the ledger held when it was opened."""
        return self._declared

    def resumed(self, state: RunState, *, forked_from: str | None = None) -> None:
        """Record that steps go on from `state`: at the start of an attempt, after a roll-back.

        `forked_from` names the run whose records stand before this one (--resume-from).
        """
        skipped = [list(interval) for interval in state.skipped]
        record = {
            "kind": "resume",
            "step": state.step,
            "position": state.position,
            "skipped": skipped,
        }
        if state.num_rollbacks:
            record["rollbacks"] = state.num_rollbacks
        if forked_from:
            record["forked_from"] = forked_from
        self._append(record)

    def stepped(self, step: int, first_position: int, num_samples: int, checksum: int) -> None:
        """Record the update that completed `step`; `checksum` is modulo 2**64."""
        self._append(
            {
                "kind": "step",
                "step": step,
                "position": first_position,
                "samples": num_samples,
                "checksum": f"{checksum:016x}",
            }
        )

    def sync(self) -> None:
        """Put what was appended on the disk: no checkpoint may outlive the records of its steps."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.error("%s could not be synced (%s)", self._path, error)

    def settle(self, seconds: float = SETTLE_SECONDS) -> bool:
        """Before leaving: write what still waits for room on the disk, if that comes in time."""
        deadline = time.monotonic() + seconds
        while self._unwritten and time.monotonic() < deadline:
            time.sleep(min(0.5, seconds))
            self._write()
        return not self._unwritten

    def _append(self, record: dict[str, Any]) -> None:
        record = {"attempt": self._attempt.number, **record}
        self._last = chain(self._last, record)
        self._unwritten.append({**record, "chain": self._last})
        self._write()

    def _write(self) -> None:
        try:
            while self._unwritten:
                self._attempt.append_jsonl(self._path, self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            log.error("%s: %d records wait for room (%s)", self._path, len(self._unwritten), error)


def chain(previous: str, record: dict[str, Any]) -> str:
    """Hash of a record (without its own `chain`) and of the one before it."""
    return hashlib.sha256((previous + json.dumps(record, sort_keys=True)).encode()).hexdigest()[:32]
