"""When rows and masks come from machine code (compiled.py) rather than from numpy.

Only where numba is installed (the extra `fast`), and only once a process has made so many rows that
compiling, some seconds, is a small price: short runs and tools never pay it. Both ways give the
same bits, so nobody has to know which one made a batch; whatever fails, numpy goes on.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

ROWS_BEFORE = 2**20
"""Rows that numpy makes first. Machine code saves some 0.5 s a million rows and more of them at
once, and takes 3 to 10 s to make."""


class FastPath:
    """The kernels of a process, from when they pay. Threads may share it: at worst both load."""

    def __init__(self, rows_before: int = ROWS_BEFORE) -> None:
        self._rows_left = rows_before
        self._kernels: ModuleType | None = None
        self._is_off = False

    def is_on(self, num_rows: int) -> bool:
        """Whether kernels run; `num_rows` more rows are about to be made."""
        self._rows_left -= num_rows
        if self._rows_left < 0 and self._kernels is None and not self._is_off:
            self.load()
        return self._kernels is not None

    def load(self) -> bool:
        """Import the kernels now; False where that fails. Each compiles when it is first called."""
        try:
            compiled = importlib.import_module("electra_dist.data.compiled")
        except ImportError as error:
            self._turn_off("are not installed", error, logging.INFO)
        except Exception as error:  # a numba that does not run here must not end a run
            self._turn_off("do not load", error)
        else:
            self._kernels, self._is_off = compiled, False
        return self._kernels is not None

    def off(self) -> None:
        """From now on numpy makes all rows."""
        self._kernels, self._is_off = None, True

    def run(self, kernel: str, *arguments: Any) -> bool:
        """Whether `kernel` filled its output arrays; where it did not, numpy has to."""
        kernels = self._kernels
        if kernels is None:
            return False
        try:
            return bool(getattr(kernels, kernel)(*arguments))
        except Exception as error:  # numba compiles at the first call
            self._turn_off(f"fail in {kernel}", error)
            return False

    def _turn_off(self, what: str, error: Exception, level: int = logging.WARNING) -> None:
        self.off()
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        log.log(level, "compiled row kernels %s (%s): numpy makes the rows", what, reason)


fast_path = FastPath()
