"""Writing parts in worker processes. They end with the parent, however it ends."""

import gc
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from electra_dist.data.parts import Encoder, EncoderSetup, PartTask
from electra_dist.data.pool import spawned_pool
from electra_dist.errors import UserError


def write_parts(
    tasks: Iterable[PartTask], setup: EncoderSetup, num_workers: int
) -> Iterator[tuple[PartTask, int, int]]:
    """Writes the part of each task; yields it with its documents and tokens, in any order.

    Holds a few more tasks than there are workers. Raises UserError when a worker was killed, and
    what a worker raised.
    """
    if num_workers == 1:
        encoder = Encoder(setup)
        for task in tasks:
            yield task, *encoder.write(task)
        return
    reader, writer = Pipe(duplex=False)
    executor = spawned_pool(num_workers, _start_worker, setup, reader)
    running: dict[Future[tuple[int, int]], PartTask] = {}
    try:
        for task in tasks:
            running[executor.submit(_write, task)] = task
            if len(running) >= num_workers + 3:
                yield from _done(running)
        while running:
            yield from _done(running)
        executor.shutdown()
    except BrokenProcessPool:
        raise UserError(
            "a worker of the build was killed (out of memory?):"
            " give the same command again to go on, with fewer --workers if memory is short"
        ) from None
    finally:
        writer.close()  # what still runs ends now: see _end_with_parent
        executor.shutdown(cancel_futures=True)
        reader.close()


def _done(running: dict[Future[tuple[int, int]], PartTask]) -> Iterator[tuple[PartTask, int, int]]:
    finished, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in finished:
        yield running.pop(future), *future.result()


_encoder: Encoder


def _start_worker(setup: EncoderSetup, reader: Connection) -> None:
    global _encoder
    threading.Thread(target=_end_with_parent, args=(reader,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else every worker starts a thread a core
    # Thousands of encodings a second would set it off again and again, for 5 % of the time.
    gc.disable()
    _encoder = Encoder(setup)
    gc.freeze()


def _end_with_parent(reader: Connection) -> None:
    """Waits for the pipe to close, be it that the parent gives up or that it was killed.

    Workers alone would wait for work for ever: each holds an end of the others' queue.
    """
    try:
        reader.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _write(task: PartTask) -> tuple[int, int]:
    counts = _encoder.write(task)
    gc.collect()
    return counts
