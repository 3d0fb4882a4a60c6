"""Saving beside the training: host buffers that hold a step's state still, and a thread to write.

The training thread copies what the rank owns into one of two buffer sets and goes on; the thread
takes the saves in the order in which they were given. With two in flight there is no third buffer:
the guard postpones a save until every rank has room.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable

import numpy as np
import torch

from electra_dist.checkpoint.commit import Save
from electra_dist.checkpoint.shard import Piece
from electra_dist.engine.protocol import Fragment
from electra_dist.errors import Superseded

log = logging.getLogger(__name__)

_PORTABLE = 1  # cudaHostRegisterPortable: for all devices, as torch's own pins

MAX_IN_FLIGHT = 2
"""Saves begun and not done; each has its own buffer set."""


class HostBuffers:
    """As many buffer sets as saves may be in flight, each as large as the rank's own share.

    Every page is touched here, once, so that no save pays for it; pinned where the state lies on a
    CUDA device, which makes the copy as fast as the bus.
    """

    def __init__(self, num_elements: int, device: torch.device) -> None:
        self._device = device
        self._buffers = [
            torch.empty(num_elements, dtype=torch.float32).zero_() for _ in range(MAX_IN_FLIGHT)
        ]
        if device.type == "cuda" and num_elements:
            for buffer in self._buffers:
                _pin(buffer)

    @property
    def num_bytes(self) -> int:
        """Of all buffer sets."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers)

    def copy(self, fragments: Iterable[Fragment], serial: int) -> list[Piece]:
        """Hold the fragments still in the buffer set of this save.

        When this returns, the copy is complete: the next step may overwrite what was copied.
        """
        buffer = self._buffers[serial % MAX_IN_FLIGHT]
        pieces = []
        end = 0
        self._wait_for_device()  # whichever stream the update ran on
        for fragment in fragments:
            start, end = end, end + len(fragment.values)
            source, target = fragment.values.detach(), buffer[start:end]
            values = target.numpy()
            if source.device.type == "cpu":
                # Of `base`, numpy's copy takes 0.25 s of processor time; torch's 0.37 s on one
                # thread and 2.4 s on two of a busy machine, which wait for each other.
                np.copyto(values, source.numpy())
            else:
                target.copy_(source, non_blocking=True)
            pieces.append(Piece(f"{fragment.parameter}/{fragment.kind}", fragment.start, values))
        self._wait_for_device()
        return pieces

    def _wait_for_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _pin(buffer: torch.Tensor) -> None:
    """Pin the memory of a tensor in place, until the tensor is gone.

    `pin_memory=True` takes it of torch's allocator, which rounds up to a power of two: 8 GiB for a
    share of 4.1, twice.
    """
    runtime = torch.cuda.cudart()
    error = int(runtime.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, _PORTABLE))
    if error:
        log.warning("save buffers can't be pinned (CUDA error %d): copies are slower", error)
    else:
        weakref.finalize(buffer, runtime.cudaHostUnregister, buffer.data_ptr())


class BackgroundWriter:
    """One thread that carries out saves in order; what went wrong is kept for the training thread.

    Args:
        carry_out: does one save; returns whether it is on the disk.
    """

    def __init__(self, carry_out: Callable[[Save], bool]) -> None:
        self._carry_out = carry_out
        self._saves: queue.SimpleQueue[Save | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._num_in_flight = 0
        self._num_failed = 0
        self._last_failed = False
        self._superseded = False
        self._seconds: list[float] = []

    @property
    def num_in_flight(self) -> int:
        """Saves begun and not done.

        Raises:
            RuntimeError: the thread is dead and can never end them.
        """
        with self._changed:
            self._check_alive()
            return self._num_in_flight

    @property
    def last_failed(self) -> bool:
        """Whether the save that was done last is not on the disk."""
        with self._changed:
            return self._last_failed

    @property
    def superseded(self) -> bool:
        """Whether a save found that a later attempt owns the run folder."""
        with self._changed:
            return self._superseded

    def take_num_failed(self) -> int:
        """Saves that failed since this was last asked."""
        with self._changed:
            number, self._num_failed = self._num_failed, 0
            return number

    def take_seconds(self) -> list[float]:
        """How long each save took that was done since this was last asked."""
        with self._changed:
            seconds, self._seconds = self._seconds, []
            return seconds

    def begin(self, save: Save) -> None:
        """Give the thread a save; at most MAX_IN_FLIGHT may be in flight."""
        with self._changed:
            self._num_in_flight += 1
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="checkpoint writer", daemon=True
                )
                self._thread.start()
        self._saves.put(save)

    def wait_idle(self, timeout_seconds: float) -> None:
        """Return when nothing is in flight, or after the time."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_in_flight == 0, timeout_seconds)

    def close(self) -> None:
        """End the thread after what is in flight."""
        if self._thread is not None:
            self._saves.put(None)
            self._thread.join()
            self._thread = None

    def _check_alive(self) -> None:
        if self._num_in_flight and self._thread is not None and not self._thread.is_alive():
            raise RuntimeError(
                f"the checkpoint writer's thread has died with {self._num_in_flight} save(s) "
                "in flight; the older checkpoints are good"
            )

    def _run(self) -> None:
        while (save := self._saves.get()) is not None:
            is_saved = is_superseded = False
            started = time.monotonic()
            try:
                is_saved = self._carry_out(save)
            except Superseded as error:
                log.error("%s", error)
                is_superseded = True
            except Exception:
                log.exception("the save of step %d failed", save.step)
            del save  # its pieces may be the memory of an engine that is closed before the next
            with self._changed:
                self._num_in_flight -= 1
                self._seconds.append(time.monotonic() - started)
                self._num_failed += not is_saved
                self._last_failed = not is_saved
                self._superseded |= is_superseded
                self._changed.notify_all()
