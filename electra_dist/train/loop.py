"""The loop: fetch, step, agree, record, decide."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from electra_dist.data.stream import MicroBatch
from electra_dist.engine.protocol import LocalResult
from electra_dist.engine.schedule import learning_rate_factor
from electra_dist.resilience.guard import ExitReason, Signs, decide
from electra_dist.resilience.health import Anomaly, Finding, Vitals, find
from electra_dist.train.build import Run
from electra_dist.train.evaluate import evaluate
from electra_dist.train.recovery import examine, roll_back
from electra_dist.train.state import RunState

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
        result = step(run, micro_batches, rate)
        timing = Timing(data_wait=fetched - started, step=time.monotonic() - started)
        run.ledger_step(result.checksum)
        run.state = result.advance(run)

        decision = decide(run.config, result.signs(run.state.step, save_overdue))
        if decision.roll_back and result.finding is not None:
            save_overdue = False
            roll_back(run, result.finding)
            continue
        evaluation = evaluate(run) if decision.evaluate else None
        run.record(result.metrics(run, rate), timing.metrics(result.tokens), evaluation)
        report_saving(run, result, decision.save_overdue and not save_overdue)
        save_overdue = decision.save_overdue
        if decision.save:
            if result.writer_busy:  # only a stop saves then
                run.store.wait()
            run.save()
        if decision.stop:
            return decision.stop if run.store.wait() else ExitReason.FAILED


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
    num_failed_saves: int
    """Found by the ranks' writers since the last step, added up over ranks."""
    anomaly: Anomaly | None
    """Why the update was left out."""
    finding: Finding | None = None
    """What came of it."""

    def advance(self, run: Run) -> RunState:
        """The state after this step."""
        vitals = None if self.anomaly else Vitals(self.loss, self.grad_norm)
        return run.state.advanced(
            run.config.batch.global_batch_size, vitals, run.config.resilience.spike_window_steps
        )

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
            response=self.finding.response if self.finding else None,
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


def step(run: Run, micro_batches: Sequence[MicroBatch], rate: float) -> StepResult:
    """One step, whose update the ranks apply only if they agree that the step is healthy."""
    agreed: list[StepResult] = []

    def may_apply(local: LocalResult) -> bool:
        agreed.append(agree(run, local))
        return agreed[0].anomaly is None

    local = run.engine.step(micro_batches, rate, may_apply)
    result = agreed[0]
    if result.anomaly is not None:
        vitals = Vitals(result.loss, result.grad_norm)
        finding = examine(run, micro_batches, rate, local, vitals, result.anomaly)
        result = replace(result, finding=finding)
    return result


def agree(run: Run, local: LocalResult) -> StepResult:
    """The one small all-reduce of a step, before its update: means, norm, checksum and flags.

    The norm is the same on every rank already, unless a gradient was damaged on one: its mean lets
    all ranks see that.

    A 64-bit checksum travels as two 32-bit halves, which float64 adds exactly for up to 2**21
    ranks.

    Raises:
        Superseded: some rank's writer has found a later attempt; every rank raises it.
    """
    names = sorted(local.sums)
    reduced = run.control.all_reduce_sum(
        [
            *(local.sums[name] for name in names),
            local.grad_norm / run.control.world_size,
            float(local.checksum >> 32),
            float(local.checksum & 0xFFFFFFFF),
            float(run.stop_signals.received is not None),
            float(run.stop_file_exists()),
            *run.store.signs(),
        ],
        name=f"step {run.state.step + 1}",
    )
    *totals, grad_norm, high, low, signalled, asked, busy, failed, superseded = reduced
    if superseded:
        raise run.attempt.superseded()
    sums = dict(zip(names, totals, strict=True))
    tokens = sums.pop("tokens")
    means = {name: total / run.config.batch.num_micro_batches for name, total in sums.items()}
    return StepResult(
        loss=means["loss"],
        generator_loss=means["generator_loss"],
        discriminator_loss=means["discriminator_loss"],
        replaced_share=means["replaced_share"],
        tokens=tokens,
        grad_norm=grad_norm,
        checksum=((int(high) << 32) + int(low)) % 2**64,
        stop_signalled=signalled > 0,
        stop_asked=asked > 0,
        writer_busy=busy > 0,
        num_failed_saves=int(failed),
        anomaly=find(Vitals(means["loss"], grad_norm), run.state.recent, run.config.resilience),
    )
