"""When to save, evaluate and stop: decided on plain values that are the same on every rank."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from electra_dist.config.schema import RunConfig


class ExitReason(enum.Enum):
    """Why a run's loop ended; the launch layer acts on it through exit.json."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """A signal asked for it: state is saved, requeue me."""
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


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do at this step boundary."""

    evaluate: bool
    save: bool
    stop: ExitReason | None


def decide(config: RunConfig, signs: Signs) -> Decision:
    """The same answer on every rank: save when due and before leaving, never after a broken step.

    A loss or gradient that is not a number ends the attempt without a save: no engine applied it,
    and what is on disk is good.
    """
    finished = signs.step >= config.schedule.last_step
    if not (math.isfinite(signs.loss) and math.isfinite(signs.grad_norm)):
        return Decision(evaluate=False, save=False, stop=ExitReason.FAILED)
    stop = None
    if finished:
        stop = ExitReason.FINISHED
    elif signs.stop_signalled:
        stop = ExitReason.STOPPED
    elif signs.stop_asked:
        stop = ExitReason.ASKED
    return Decision(
        evaluate=finished or signs.step % config.metrics.eval_every == 0,
        save=stop is not None or signs.step % config.checkpoint.every_steps == 0,
        stop=stop,
    )
