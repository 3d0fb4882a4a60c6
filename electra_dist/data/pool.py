"""A pool of spawned processes that leaves Ctrl-C to the process which made it."""

import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any


def spawned_pool(
    num_workers: int, initializer: Callable[..., None] | None = None, *arguments: Any
) -> ProcessPoolExecutor:
    """Each worker calls `initializer(*arguments)` first."""
    return ProcessPoolExecutor(
        num_workers, mp_context=_Context(), initializer=initializer, initargs=arguments
    )


class _Process(SpawnProcess):
    """Is born with SIGINT blocked.

    An initializer that ignores the signal comes half a second of imports too late: until then
    Ctrl-C would end each worker in a trace of its own.
    """

    def start(self) -> None:
        old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # the child inherits it
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)


class _Context(SpawnContext):
    Process = _Process
