"""Time that hides inside a backward pass or an optimizer: DeepSpeed's own collectives.

Only on the CPU, where a collective holds the thread that calls it. On CUDA it is a kernel on a
stream: the host does not wait there, and hooks run in threads of autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from electra_dist.runtime.phases import Phases

COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_coalesced",
    "barrier",
)
"""Of DeepSpeed's communication backend, those that a ZeRO step may call."""


def count_as_waiting(backend: Any, phases: Phases) -> None:
    """Make the collectives of `backend` a phase of their own, `reduce`.

    For one engine at a time: that of an earlier one counts on the newest one's clock.
    """
    for name in COLLECTIVES:
        plain = getattr(type(backend), name, None)
        if plain is not None:
            setattr(backend, name, _waiting(functools.partial(plain, backend), phases))


def _waiting(collective: Callable[..., Any], phases: Phases) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with phases.enter("reduce"):
            work = collective(*args, **kwargs)
        return Work(work, phases) if hasattr(work, "wait") else work

    return call


class Work:
    """A collective that is under way: waiting for it counts as well."""

    def __init__(self, work: Any, phases: Phases) -> None:
        self._work, self._phases = work, phases

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """See torch.distributed.Work."""
        with self._phases.enter("reduce"):
            return self._work.wait(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
