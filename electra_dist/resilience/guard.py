"""When to save, evaluate and stop: decided on plain values that are the same on every rank."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from electra_dist.config.schema import RunConfig
from electra_dist.resilience.health import Response


class ExitReason(enum.Enum):
    """Why a run's loop ended; the launch layer acts on it through exit.json."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """A signal asked for it, or the job's end: state is saved, requeue me."""
    ASKED = "asked"
    """`electra-dist stop` asked for it: state is saved, do not requeue."""
    FAILED = "failed"
    """Training cannot go on; the last checkpoint is good."""

    @property
    def exit_code(self) -> int:
        """0 finished or asked for, 75 stopped on a signal, 1 failed."""
        return {ExitReason.STOPPED: 75, ExitReason.FAILED: 1}.get(self, 0)


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What all ranks know after a step, from the step's one all-reduce."""

    step: int
    """Steps completed."""
    loss: float
    grad_norm: float
    stop_signalled: bool
    """Some rank has received a signal."""
    stop_asked: bool
    """The file RUN/STOP is there."""
    writer_busy: bool
    """Some rank's writer has no room for another save."""
    save_overdue: bool
    """An earlier boundary's decision: a save was due and is still to be made."""
    response: Response | None = None
    """To an anomaly of this step; None: there was none."""
    time_is_up: bool = False
    """Rank 0: the job ends soon, and this is the last safe step."""
    hurry: bool = False
    """Rank 0: there is no time left for an evaluation before the save."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do at this step boundary."""

    evaluate: bool
    save: bool
    save_overdue: bool
    """A save is due and must wait for a boundary at which every rank has room for it."""
    stop: ExitReason | None
    roll_back: bool = False
    """Before anything else."""
    compare: bool = False
    """Before the save, make sure that ranks still hold the same where they should."""


def decide(config: RunConfig, signs: Signs) -> Decision:
    """The same answer on every rank: save when due and before leaving, never after a broken step.

    A due save is postponed while some rank's writer has no room, never dropped; a stop waits for
    room instead. No engine has applied a step with an anomaly. A skipped one is a step as any
    other; after a roll-back this boundary does not exist; else the attempt ends without a save, and
    what is on disk is good. A stop that has no time for a due evaluation goes without it, for the
    save matters more.
    """
    if signs.response is Response.ROLL_BACK:
        return Decision(evaluate=False, save=False, save_overdue=False, stop=None, roll_back=True)
    is_broken = not (math.isfinite(signs.loss) and math.isfinite(signs.grad_norm))
    if signs.response is Response.STOP or (is_broken and signs.response is not Response.SKIP):
        return Decision(evaluate=False, save=False, save_overdue=False, stop=ExitReason.FAILED)
    finished = signs.step >= config.schedule.last_step
    stop = None
    if finished:
        stop = ExitReason.FINISHED
    elif signs.stop_signalled or signs.time_is_up:
        stop = ExitReason.STOPPED
    elif signs.stop_asked:
        stop = ExitReason.ASKED
    is_due = signs.save_overdue or signs.step % config.checkpoint.every_steps == 0
    evaluation_is_due = finished or signs.step % config.metrics.eval_every == 0
    save = stop is not None or (is_due and not signs.writer_busy)
    every = config.resilience.compare_replicas_every
    return Decision(
        evaluate=evaluation_is_due and not (signs.hurry and stop is not None),
        save=save,
        save_overdue=stop is None and is_due and signs.writer_busy,
        stop=stop,
        compare=save or (every is not None and signs.step % every == 0),
    )
