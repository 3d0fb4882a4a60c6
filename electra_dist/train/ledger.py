"""RUN/ledger.jsonl: the positions of each step, and a checksum of what the engines were given.

Each record holds the hash of the one before it, so that none can be changed or taken out unseen. A
resume is a record too: what later steps repeat is thereby declared.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import read_json_lines

log = logging.getLogger(__name__)


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

    def resumed(self, step: int, position: int) -> None:
        """Record that this attempt goes on from `step`."""
        self._append({"kind": "resume", "step": step, "position": position})

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

    def _append(self, record: dict[str, Any]) -> None:
        record = {"attempt": self._attempt.number, **record}
        self._last = chain(self._last, record)
        self._unwritten.append({**record, "chain": self._last})
        try:
            while self._unwritten:
                self._attempt.append_jsonl(self._path, self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            log.error("%s: %d records wait for room (%s)", self._path, len(self._unwritten), error)


def chain(previous: str, record: dict[str, Any]) -> str:
    """Hash of a record (without its own `chain`) and of the one before it."""
    return hashlib.sha256((previous + json.dumps(record, sort_keys=True)).encode()).hexdigest()[:32]
