"""Host memory of a process that computes on the CPU."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

# Of <malloc.h> and <sys/mman.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MADV_HUGEPAGE = 14
_NEVER = -1
"""As a threshold: the largest size to glibc, where 2**31 - 1 is one that a step may free."""

_HUGE_PAGE_BYTES = 2**21


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next allocation; False where it cannot.

    A step frees and asks for the same large tensors again and again. By default glibc returns each
    above 32 MB to the system and the end of its heap too: a step of `small` then waits for 110,000
    page faults, a tenth of its time. Resident memory stays at the largest that a step needed.
    """
    libc = _glibc()
    if libc is None:
        return False
    return bool(libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)) and bool(libc.mallopt(_M_MMAP_MAX, 0))


def prefer_huge_pages(num_bytes: int) -> bool:
    """Let the next so many bytes of the heap lie in huge pages; False where they cannot.

    Where the kernel gives them to those who ask (`madvise` in
    /sys/kernel/mm/transparent_hugepage/enabled): a step of `small` takes 1 to 4 % less. Call it
    after `keep_freed_memory`, or the heap would be cut again. Nothing is resident until it is used.
    """
    libc = _glibc()
    if libc is None or not (block := libc.malloc(num_bytes)):
        return False
    begin = -(-block // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    length = (block + num_bytes - begin) // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
    is_taken = length > 0 and not libc.madvise(begin, length, _MADV_HUGEPAGE)
    libc.free(block)
    return is_taken


@cache
def _glibc() -> Any:
    """The C library of this process, or None where it is not glibc."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
        libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    except (OSError, AttributeError):
        return None
    return libc
