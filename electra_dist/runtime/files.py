"""Files that others read: each appears whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_json_atomic(path: Path, value: Any, *, sync_folder: bool = True) -> None:
    """Write `value` as indented JSON so that a reader, or a crash, never sees half of it.

    Raises:
        OSError: as `write_bytes_atomic`.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_bytes_atomic(path, text.encode(), sync_folder=sync_folder)


def write_bytes_atomic(path: Path, data: bytes, *, sync_folder: bool = True) -> None:
    """Write to a temporary name, fsync, rename, fsync the folder: `path` holds the old or the new.

    Args:
        path: where it goes.
        data: all of it.
        sync_folder: False where a reader may move the folder once it sees the name. After a power
            cut the old contents may be back.

    Raises:
        OSError: disk full, quota, no permission; `path` is as it was before, or, where the folder
            could not be synced, it holds the new contents, which a power cut may take back.
    """
    # The process id: on a shared disk a cut-off rank 0 and its successor may write the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if sync_folder:
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` (a rename, a new file) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file, without half-written lines; none if there is no such file."""
    if not path.exists():
        return []
    records = (parse_line(line) for line in path.read_bytes().split(b"\n"))
    return [record for record in records if record is not None]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The JSON object in `line`, or None if a crash or a full disk cut it off."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
