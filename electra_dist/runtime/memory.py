"""Host memory of a process that computes on the CPU."""

from __future__ import annotations

import ctypes

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1
"""As a threshold: the largest size to glibc, where 2**31 - 1 is one that a step may free."""


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next allocation; False where it cannot.

    A step frees and asks for the same large tensors again and again. By default glibc returns each
    above 32 MB to the system and the end of its heap too: a step of `small` then waits for 110,000
    page faults, a tenth of its time. Resident memory stays at the largest that a step needed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_M_MMAP_MAX, 0))
