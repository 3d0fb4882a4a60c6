"""RUN/ledger.jsonl: which positions each step used, and a checksum of the tensors that the engines were given.

Each record holds the hash of the one before it, so that none can be changed or taken out unseen. A
resume is a record too: what later steps repeat is thereby declared.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import read_json_lines


class Ledger:
    """Appends to the chain (rank 0)."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._path = attempt.run_folder / "ledger.jsonl"
        records = read_json_lines(self._path)
        self._last = records[-1]["chain"] if records else ""

    def resumed(self, step: int, position: int) -> None:
        """Record that this attempt goes on from `step`."""
        self._append({"kind": "resume", "step": step, "position": position})

    def stepped(self, step: int, first_position: int, num_samples: int, checksum: int) -> None:
        """Record the update that completed `step`; `checksum` is summed over all micro-batches modulo 2**64."""
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
        self._attempt.append_jsonl(self._path, {**record, "chain": self._last})


def chain(previous: str, record: dict[str, Any]) -> str:
    """Hash of a record (without its own `chain`) and of the one before it."""
    return hashlib.sha256((previous + json.dumps(record, sort_keys=True)).encode()).hexdigest()[:32]
