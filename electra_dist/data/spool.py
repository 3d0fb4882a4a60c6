"""Arrays that grow on disk: what is collected before its length is known."""

import mmap
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from electra_dist.data.store import Array

_BLOCK_BYTES = 1 << 20


class Spool:
    """Rows appended to a file that has no name any more: it goes when this object does."""

    def __init__(self, path: Path) -> None:
        self.num_rows = 0
        self.dtype: npt.DTypeLike = np.int64
        """Of what was appended."""
        self._row_shape: tuple[int, ...] = ()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self.close = weakref.finalize(self, os.close, self._descriptor)
        """Gives the space back; so does forgetting the object."""
        path.unlink()

    def append(self, rows: Array) -> None:
        """Adds rows, all of one type and shape.

        Raises OSError on a full disk.
        """
        if len(rows) == 0:
            return
        self.dtype, self._row_shape = rows.dtype, rows.shape[1:]
        offset = self.num_rows * self._row_bytes
        data = np.ascontiguousarray(rows).data.cast("B")
        while data:  # a write may take less than all of it
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written
        self.num_rows += len(rows)

    def blocks(self) -> Iterator[Array]:
        """All rows in order, about a megabyte at a time."""
        # A multiple of 8 rows: word-start bits are packed by the byte.
        step = max(8, _BLOCK_BYTES // self._row_bytes // 8 * 8)
        for start in range(0, self.num_rows, step):
            wanted = min(step, self.num_rows - start) * self._row_bytes
            data = os.pread(self._descriptor, wanted, start * self._row_bytes)
            yield np.frombuffer(data, self.dtype).reshape(-1, *self._row_shape)

    def mapped(self) -> Array:
        """All rows as a memory map, for reading them in any order."""
        size = self.num_rows * self._row_bytes
        data = mmap.mmap(self._descriptor, size, access=mmap.ACCESS_READ) if size else b""
        return np.frombuffer(data, self.dtype).reshape(-1, *self._row_shape)

    def clear(self) -> None:
        """Back to no rows."""
        self.num_rows = 0
        os.ftruncate(self._descriptor, 0)

    @property
    def _row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * int(np.prod(self._row_shape))
