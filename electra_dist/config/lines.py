"""Lines at the end of a file. Here, below all that write records, on login nodes too."""

import os
from pathlib import Path


def append_line(path: Path, line: str) -> None:
    """Append one line to `path` in one write, on a fresh line even after a half-written one.

    One host's processes may append at the same time; several hosts of a network file system may not
    (O_APPEND is not atomic there), so files of a run are appended to by rank 0.

    Raises:
        OSError: the line could not be written whole; then nothing of it is left in the file.
    """
    data = (line + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        written = os.write(descriptor, data)
        if written != len(data):  # A full disk takes what still fits.
            os.ftruncate(descriptor, size)
            raise OSError(f"{path}: only {written} of {len(data)} bytes fit on the disk")
    finally:
        os.close(descriptor)
