"""A pool of spawned processes that leaves Ctrl-C to the process which made it."""

import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

Result = TypeVar("Result")


def spawned_pool(
    num_workers: int, initializer: Callable[..., None] | None = None, *arguments: Any
) -> ProcessPoolExecutor:
    """Each worker calls `initializer(*arguments)` first."""
    return _Pool(
        num_workers, mp_context=get_context("spawn"), initializer=initializer, initargs=arguments
    )


class _Pool(ProcessPoolExecutor):
    """Its workers, which a task starts, are born with SIGINT blocked: they inherit the mask.

    An initializer that ignores the signal comes half a second of imports too late: until then
    Ctrl-C would end each worker in a trace of its own. Nor can it come between the start of a
    worker and its entry in the pool's list, without which the worker would never be ended.
    """

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
