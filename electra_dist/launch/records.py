"""The records of a run folder, read as they are written: what is half-written is passed over."""

import json
import re
from pathlib import Path
from typing import Any

from electra_dist.config.lines import append_line

TAIL_BYTES = 1 << 20
"""As much is read of the end of metrics.jsonl and events.jsonl: some 2,000 lines."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty if it is missing or half-written."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_lines(path: Path, tail_bytes: int | None = None) -> list[dict[str, Any]]:
    """The whole records of a .jsonl file, or of its last `tail_bytes`; none if it is not there."""
    try:
        with path.open("rb") as file:
            if tail_bytes is not None:
                file.seek(max(0, path.stat().st_size - tail_bytes))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append `record` to a .jsonl file.

    Raises:
        OSError: as `append_line`.
    """
    append_line(path, json.dumps(record, ensure_ascii=False))


def attempt_folder(run: Path, number: int) -> Path:
    """RUN/attempts/NNNN."""
    return run / "attempts" / f"{number:04d}"


def attempt_folders(run: Path) -> list[Path]:
    """Oldest first."""
    folders = [p for p in run.glob("attempts/*") if p.name.isdigit()]
    return sorted(folders, key=lambda p: int(p.name))


def newest_attempt(run: Path) -> int:
    """Its number, or 0."""
    return max((int(path.name) for path in attempt_folders(run)), default=0)


def complete_checkpoints(run: Path) -> list[str]:
    """Names (step_00001000) of the checkpoints that have a manifest, oldest first."""
    folders = (run / "checkpoints").glob("step_*/manifest.json")
    names = [path.parent.name for path in folders]
    # Whole names only: step_N.tmp-3, .bad and .abandoned are no checkpoints to go by.
    return sorted(n for n in names if re.fullmatch(r"step_\d+", n))


def section(value: dict[str, Any], name: str) -> dict[str, Any]:
    """value[name] if that is an object, else an empty one."""
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float | None:
    """A number of JSON as a float; None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else None
