"""The loop: fetch, step, agree, record, decide."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from electra_dist.engine.protocol import LocalResult
from electra_dist.engine.schedule import learning_rate_factor
from electra_dist.resilience.guard import ExitReason, Signs, decide
from electra_dist.train.build import Run
from electra_dist.train.evaluate import evaluate

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
        started = time.monotonic()
        micro_batches = run.stream.micro_batches(
            run.state.step, run.state.position, run.state.skipped
        )
        fetched = time.monotonic()
        rate = learning_rate(run)
        result = agree(run, run.engine.step(micro_batches, rate))
        timing = Timing(data_wait=fetched - started, step=time.monotonic() - started)
        run.clock.stepped(data_wait=timing.data_wait, step=timing.step)
        run.ledger_step(result.checksum)
        run.state = run.state.advanced(run.config.batch.global_batch_size)

        decision = decide(run.config, result.signs(run.state.step, save_overdue))
        evaluation = None
        if decision.evaluate:
            with run.clock.evaluating():
                evaluation = evaluate(run)
        run.record(result.metrics(run, rate), timing.metrics(result.tokens), evaluation)
        report_saving(run, result, decision.save_overdue and not save_overdue)
        save_overdue = decision.save_overdue
        with run.clock.saving():
            if decision.save and result.writer_busy:  # only a stop saves then
                run.store.wait()
            if decision.save:
                run.save()
            if decision.stop:
                return decision.stop if run.store.wait() else ExitReason.FAILED
        run.clock.book.boundary(run.state.step, must_write=decision.save)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """A step as all ranks know it: means over its M micro-batches."""

    loss: float
    generator_loss: float
    discriminator_loss: float
    replaced_share: float
    tokens: float
    """Real tokens of the step, padding left out."""
    grad_norm: float
    checksum: int
    """Sum of the micro-batches' checksums modulo 2**64."""
    stop_signalled: bool
    stop_asked: bool
    writer_busy: bool
    """Some rank has no room for another save."""
    time_is_up: bool
    hurry: bool
    num_failed_saves: int
    """Found by the ranks' writers since the last step, added up over ranks."""

    def signs(self, step: int, save_overdue: bool) -> Signs:
        """What the guard decides on."""
        return Signs(
            step=step,
            loss=self.loss,
            grad_norm=self.grad_norm,
            stop_signalled=self.stop_signalled,
            stop_asked=self.stop_asked,
            writer_busy=self.writer_busy,
            save_overdue=save_overdue,
            time_is_up=self.time_is_up,
            hurry=self.hurry,
        )

    def metrics(self, run: Run, rate: float) -> dict[str, float]:
        """The reproducible part of a line of metrics.jsonl."""
        return {
            "samples": run.state.position,
            "tokens": self.tokens,
            "loss": self.loss,
            "generator_loss": self.generator_loss,
            "discriminator_loss": self.discriminator_loss,
            "replaced_share": self.replaced_share,
            "grad_norm": self.grad_norm,
            "lr": rate,
        }


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Where the time of one step went, in seconds."""

    data_wait: float
    step: float

    def metrics(self, tokens: float) -> dict[str, float]:
        """The part of a line of metrics.jsonl that depends on the clock."""
        return {
            "step_seconds": self.step,
            "data_wait_seconds": self.data_wait,
            "tokens_per_s": tokens / self.step,
        }


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


def agree(run: Run, local: LocalResult) -> StepResult:
    """The one small all-reduce of a step: means, checksum and flags, equal on every rank.

    A 64-bit checksum travels as two 32-bit halves, which float64 adds exactly for up to 2**21
    ranks.

    Raises:
        Superseded: some rank's writer has found a later attempt; every rank raises it.
    """
    names = sorted(local.sums)
    reduced = run.control.all_reduce_sum(
        [
            *(local.sums[name] for name in names),
            float(local.checksum >> 32),
            float(local.checksum & 0xFFFFFFFF),
            *run.time_signs(),
            float(run.stop_signals.received is not None),
            float(run.stop_file_exists()),
            *run.store.signs(),
        ],
        name=f"step {run.state.step + 1}",
    )
    *totals, high, low, time_is_up, hurry, signalled, asked, busy, failed, superseded = reduced
    if superseded:
        raise run.attempt.superseded()
    sums = dict(zip(names, totals, strict=True))
    tokens = sums.pop("tokens")
    means = {name: total / run.config.batch.num_micro_batches for name, total in sums.items()}
    return StepResult(
        **means,
        tokens=tokens,
        grad_norm=local.grad_norm,
        checksum=((int(high) << 32) + int(low)) % 2**64,
        stop_signalled=signalled > 0,
        stop_asked=asked > 0,
        writer_busy=busy > 0,
        time_is_up=time_is_up > 0,
        hurry=hurry > 0,
        num_failed_saves=int(failed),
    )
