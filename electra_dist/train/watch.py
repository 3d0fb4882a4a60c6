"""What looks after a rank while it trains: the watchdog and its signs of life."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from electra_dist.resilience.watchdog_thread import WatchdogThread
from electra_dist.runtime.beats import Beats, nodes_of
from electra_dist.runtime.logs import log_path
from electra_dist.train.build import Run


@contextmanager
def watched(run: Run) -> Iterator[None]:
    """While the block runs, heartbeats are written and a hang ends this process."""
    rank = run.world.rank
    node = next(node for node in nodes_of(run.seats) if rank in node.ranks)
    beats = Beats(run.attempt, rank, node)
    if rank == node.ranks[0]:
        beats.remove_older()
    watchdog = WatchdogThread(
        phases=run.phases,
        beats=beats,
        attempt=run.attempt,
        rank=rank,
        world_size=run.world.world_size,
        config=run.config.resilience,
        log_path=log_path(run.world, run.attempt.folder),
        completed_steps=lambda: run.state.step,
        on_hang=lambda: _record_hang(run),
    )
    run.phases.listeners.append(beats.beat)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.close()
        run.phases.listeners.remove(beats.beat)
        beats.close()


def _record_hang(run: Run) -> None:
    """What passed since the last step boundary was the hang's."""
    book = run.clock.book
    book.add("hang", book.since_boundary)
    book.end(run.state.step)
