"""`electra-dist pretrain` on one rank: build, train, and say in exit.json why it ended."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from electra_dist.checkpoint.layout import list_checkpoints
from electra_dist.config.schema import RunConfig
from electra_dist.errors import Superseded, UserError
from electra_dist.resilience.guard import ExitReason
from electra_dist.runtime.collectives import CollectiveError, leave
from electra_dist.runtime.world import World
from electra_dist.train.beginning import Beginning
from electra_dist.train.build import Run, assemble
from electra_dist.train.join import Joined, join
from electra_dist.train.loop import train
from electra_dist.train.watch import watched

log = logging.getLogger(__name__)

SETTLE_SECONDS = 10.0
"""How long a rank that leaves after an error lets its writer end a save that is in flight."""


def pretrain(config: RunConfig, run_folder: Path, beginning: Beginning | None = None) -> int:
    """Start the run, or resume it if the folder holds a checkpoint; returns the exit code.

    Args:
        config: of the run.
        run_folder: RUN.
        beginning: what a new run takes its first state from; a resume needs none.

    Raises:
        UserError: before any rank has met another. Later errors end the process without a
            collective.
    """
    world = World.from_environment(os.environ)
    joined: Joined | None = None
    run: Run | None = None
    try:
        joined = join(config, run_folder, os.environ, beginning)
        run = assemble(joined)
        with watched(run):
            reason = train(run)
        _finish(run, reason)
    except UserError as error:
        if joined is None and not dist.is_initialized():
            raise  # no rank has met another: nobody waits for this one
        if world.is_leader:
            print(f"electra-dist: {error}", file=sys.stderr)
        elif joined is not None:
            log.error("%s", error)  # what only this rank may have seen stands in its log
        _leave(joined, run, "failed", 2)
    except Superseded as error:
        log.error("%s", error)
        _leave(joined, run, "superseded", 1)
    except Exception as error:
        # The trace is for the rank's log; where no log exists yet, for the console.
        log.error("rank %d failed: %s: %s", world.rank, type(error).__name__, error)
        log.debug("%s", traceback.format_exc())
        if joined is None and not isinstance(error, CollectiveError):
            traceback.print_exc()
        if run is not None:
            _settle(run)
        _leave(joined, run, "failed", 1)
    return reason.exit_code


def stop_cause(run: Run, reason: ExitReason) -> dict[str, str]:
    """Who asked for the stop, as a detail of its event; nothing where nobody did."""
    if reason is ExitReason.ASKED:
        return {"cause": "electra-dist stop"}
    if reason is not ExitReason.STOPPED:
        return {}
    if run.stop_signals.received is not None:
        return {"cause": run.stop_signals.received}
    return {"cause": "time limit" if run.clock.is_up else "a signal to another rank"}


def _settle(run: Run) -> None:
    """Let a save that is in flight end, and say where the time since the last step went."""
    run.store.settle(SETTLE_SECONDS)
    with suppress(Exception):  # the error that ends this attempt is the one to report
        run.clock.broke_off(run.state.step)


def _finish(run: Run, reason: ExitReason) -> None:
    """Leave together, then rank 0 writes exit.json as its last act."""
    if run.world.is_leader:
        cause = stop_cause(run, reason)
        try:
            run.events.append("stop", step=run.state.step, reason=reason.value, **cause)
        except OSError as error:  # a full disk makes no failure of a run that is saved
            log.error("the event stop could not be written: %s", error)
        log.info("%s at step %d, %s", reason.value, run.state.step, run.store.newest_name())
    run.close()
    run.groups.shutdown(graceful=True)
    run.clock.book.end(run.state.step)
    if run.world.is_leader:
        run.attempt.write_exit(
            reason=reason.value,
            step=run.state.step,
            checkpoint=run.store.newest_name(),
            exit_code=reason.exit_code,
        )


def _leave(joined: Joined | None, run: Run | None, reason: str, exit_code: int) -> NoReturn:
    """End this process after an error: others may wait in a collective that never completes."""
    try:
        # A rank 0 that was stopped and wakes up finds that the others have called it a hang.
        is_said = joined is not None and (joined.attempt.folder / "exit.json").exists()
        if joined is not None and joined.groups.world.is_leader and not is_said:
            newest = list_checkpoints(joined.attempt.run_folder)[-1:]
            joined.attempt.write_exit(
                reason=reason,
                step=run.state.step if run else 0,
                checkpoint=newest[0].folder.name if newest else None,
                exit_code=exit_code,
            )
    except OSError as error:
        log.error("exit.json could not be written: %s", error)
    finally:
        leave(exit_code)
