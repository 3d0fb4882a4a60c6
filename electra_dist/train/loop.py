"""The loop: fetch, step, agree, record, decide."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from electra_dist.engine.schedule import learning_rate_factor
from electra_dist.resilience.guard import ExitReason, decide
from electra_dist.train.alarms import sound_alarms
from electra_dist.train.build import Run
from electra_dist.train.efficiency import Efficiency
from electra_dist.train.evaluate import evaluate
from electra_dist.train.recovery import roll_back
from electra_dist.train.replicas import replicas_agree
from electra_dist.train.step import StepResult, step

log = logging.getLogger(__name__)


def train(run: Run) -> ExitReason:
    """Run to the last step, or until a signal, a STOP file or a broken step ends it. Collective.

    When it returns, every save that was begun is on disk, or has failed with an event.

    Raises:
        Superseded: on every rank: a later attempt owns the run folder.
    """
    save_overdue = False
    while True:
        if run.state.step >= run.config.schedule.last_step:
            return ExitReason.FINISHED
        run.phases.begin_step(run.state.step + 1)
        started, waited = time.monotonic(), run.phases.waiting_seconds()
        with run.phases.enter("data"):
            micro_batches = run.fetch()
        fetched = time.monotonic()
        rate = learning_rate(run)
        result = step(run, micro_batches, rate)
        timing = Timing(
            data_wait_seconds=fetched - started,
            step_seconds=time.monotonic() - started,
            communication_seconds=run.phases.waiting_seconds() - waited,
        )
        run.clock.stepped(
            data_wait_seconds=timing.data_wait_seconds, step_seconds=timing.step_seconds
        )
        run.ledger_step(result.checksum)
        run.state = result.advance(run)

        decision = decide(run.config, result.signs(run.state.step, save_overdue))
        if decision.roll_back and result.finding is not None:
            save_overdue = False
            with run.phases.enter("restore"):
                roll_back(run, result.finding)
            run.clock.book.rolled_back(run.state.step)
            continue
        if not replicas_agree(run, decision.compare):
            return ExitReason.FAILED
        evaluation = None
        if decision.evaluate:
            with run.clock.evaluating(), run.phases.enter("evaluate"):
                evaluation = evaluate(run)
            if evaluation is not None:
                sound_alarms(run, evaluation)
        with run.phases.enter("record"):
            run.record(
                result.metrics(run, rate),
                timing.metrics(result.tokens, run.efficiency),
                evaluation,
            )
        report_saving(run, result, decision.save_overdue and not save_overdue)
        save_overdue = decision.save_overdue
        with run.clock.saving():
            if decision.save and result.writer_busy:  # only a stop saves then
                run.store.wait()
            if decision.save:
                run.save()
            if decision.stop:
                return decision.stop if settled(run) else ExitReason.FAILED
        run.stragglers.compare(run.state.step, run.report)
        run.clock.book.boundary(run.state.step, must_write=decision.save)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Where the time of one step went."""

    data_wait_seconds: float
    step_seconds: float
    communication_seconds: float = 0.0
    """The main thread in collectives, with what it waits there for others."""

    def metrics(self, tokens: float, efficiency: Efficiency | None) -> dict[str, float]:
        """The part of a line of metrics.jsonl that depends on the clock (rank 0 writes it)."""
        values = {
            "step_seconds": self.step_seconds,
            "data_wait_seconds": self.data_wait_seconds,
            "data_wait": self.data_wait_seconds / self.step_seconds,
            "communication_seconds": self.communication_seconds,
            "exposed_communication": self.communication_seconds / self.step_seconds,
            "tokens_per_s": tokens / self.step_seconds,
        }
        if efficiency is not None:
            values |= efficiency.metrics(tokens=tokens, step_seconds=self.step_seconds)
        return values


def settled(run: Run) -> bool:
    """Wait until the last save is on disk, and on rank 0 the ledger of its steps: a full disk ends.

    Returns:
        Whether both are.
    """
    is_saved = run.store.wait()
    return (run.ledger is None or run.ledger.settle()) and is_saved


def learning_rate(run: Run) -> float:
    """The rate of the next update; the first one has rate 0, as in google-research/electra."""
    schedule = run.config.schedule
    factor = learning_rate_factor(
        run.state.step, schedule.num_steps, schedule.warmup_steps, schedule.power
    )
    return run.config.optim.learning_rate * factor


def report_saving(run: Run, result: StepResult, is_postponed: bool) -> None:
    """Say on every rank what the writers have found; rank 0's own has written the event."""
    if result.num_failed_saves:
        log.error("a checkpoint could not be saved (events.jsonl); the run goes on without it")
    if is_postponed and run.world.is_leader:
        log.warning(
            "step %d: the save waits, two are still being written; a larger "
            "checkpoint.every_steps (now %d) fits this disk",
            run.state.step,
            run.config.checkpoint.every_steps,
        )
