"""The list of bad records of a build: quarantine.jsonl, a JSON object a line.

Each names `file`, `byte_offset` (or `row`, for sources of rows) and `reason`, some a `detail`;
`kept`: nothing is lost, a document or sentence over a limit became several.
"""

import json
import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from electra_dist.data.sources import BadRecord
from electra_dist.errors import UserError


class Quarantine:
    """Writes bad records as they come; they are measured against `num_records`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_records = 0
        """All records read, good and bad; the caller counts them."""
        self.by_reason: Counter[str] = Counter()
        """Bad records."""
        self.kept_by_reason: Counter[str] = Counter()
        """Records that are listed, but lost nothing."""
        self._first = ""
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    @property
    def num_bad(self) -> int:
        """Bad records so far."""
        return self.by_reason.total()

    def add(self, file_name: str, record: BadRecord) -> None:
        """Notes one record: a bad one, or one that was kept in parts."""
        entry: dict[str, Any] = {"file": file_name}
        if record.byte_offset is not None:
            entry["byte_offset"] = record.byte_offset
        if record.row is not None:
            entry["row"] = record.row
        entry["reason"] = record.reason
        if record.detail:
            entry["detail"] = record.detail
        if record.kept:
            entry["kept"] = True
        # File names that are not UTF-8 hold surrogates, which only ASCII JSON can carry.
        self._file.write(json.dumps(entry) + "\n")
        if record.kept:
            self.kept_by_reason[record.reason] += 1
            return
        if not self._first:
            unit, place = "byte", record.byte_offset
            if record.row is not None:
                unit, place = "row", record.row
            self._first = f"{file_name} at {unit} {place}: {record.reason}"
        self.by_reason[record.reason] += 1

    def check_share(self, limit: float) -> None:
        """Raises UserError when bad records are more than `limit` of all."""
        if self.num_bad > limit * self.num_records:
            raise UserError(
                f"{self.num_bad} of {self.num_records} records are bad, over max_quarantine_share"
                f" {limit} (the first: {self._first}; all in {self.path}):"
                " repair the input, check --source, or raise the share"
            )

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "records": self.num_bad,
            "of_records": self.num_records,
            "by_reason": dict(sorted(self.by_reason.items())),
            "kept_by_reason": dict(sorted(self.kept_by_reason.items())),
        }
