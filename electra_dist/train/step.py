"""One step as all ranks agree on it: computed, summed up, applied if it is healthy."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from electra_dist.data.stream import MicroBatch
from electra_dist.engine.gradients import tower_of
from electra_dist.engine.protocol import LocalResult
from electra_dist.engine.scaling import LossScale
from electra_dist.model.objectives import objective_named
from electra_dist.resilience.guard import Signs
from electra_dist.resilience.health import Anomaly, Finding, Response, Vitals, find
from electra_dist.train.build import Run
from electra_dist.train.recovery import examine
from electra_dist.train.state import RunState

log = logging.getLogger(__name__)


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
    anomaly: Anomaly | None
    """Why the update was left out."""
    finding: Finding | None = None
    """What came of it."""
    loss_scale: LossScale | None = None
    """That this step was made with, in fp16."""
    overflowed: bool = False
    """The update was left out because gradients were too large for fp16, at this scale."""
    tower_norms: Mapping[str, float] = field(default_factory=dict)
    """Gradient norm of each tower and of what they share, where this step is logged."""

    @property
    def is_applied(self) -> bool:
        """Whether the update was made."""
        return self.anomaly is None and not self.overflowed

    def next_scale(self, run: Run) -> LossScale | None:
        """The loss scale of the step after this one."""
        window = run.config.engine.loss_scale_window
        scale = self.loss_scale
        return scale and scale.after(overflowed=self.overflowed, window_steps=window)

    def advance(self, run: Run) -> RunState:
        """The state after this step."""
        return run.state.advanced(
            run.config.batch.global_batch_size,
            Vitals(self.loss, self.grad_norm) if self.is_applied else None,
            run.config.resilience.spike_window_steps,
            self.next_scale(run),
        )

    def signs(self, step: int, save_overdue: bool) -> Signs:
        """What the guard decides on."""
        response = self.finding.response if self.finding else None
        return Signs(
            step=step,
            loss=self.loss,
            grad_norm=self.grad_norm,
            stop_signalled=self.stop_signalled,
            stop_asked=self.stop_asked,
            writer_busy=self.writer_busy,
            save_overdue=save_overdue,
            response=Response.SKIP if self.overflowed else response,
            time_is_up=self.time_is_up,
            hurry=self.hurry,
        )

    def metrics(self, run: Run, rate: float) -> dict[str, float]:
        """The reproducible part of a line of metrics.jsonl."""
        objective = objective_named(run.config.objective.name)
        of_discriminator = {
            "discriminator_loss": self.discriminator_loss,
            "replaced_share": self.replaced_share,
        }
        return {
            "samples": run.state.position,
            "tokens": self.tokens,
            "loss": self.loss,
            # Of a tower that is not there nothing is said: a 0 would look like a value.
            **({"generator_loss": self.generator_loss} if objective.generator else {}),
            **(of_discriminator if objective.has_discriminator else {}),
            "grad_norm": self.grad_norm,
            "lr": rate,
            **{f"grad_norm_{tower}": norm for tower, norm in self.tower_norms.items()},
            **({"loss_scale": self.loss_scale.scale} if self.loss_scale else {}),
        }


def step(run: Run, micro_batches: Sequence[MicroBatch], rate: float) -> StepResult:
    """One step, whose update the ranks apply only if they agree that the step is healthy."""
    agreed: list[StepResult] = []

    def may_apply(local: LocalResult) -> bool:
        agreed.append(agree(run, local))
        return agreed[0].is_applied

    options = run.step_options()
    local = run.engine.step(micro_batches, rate, may_apply, options)
    result = agreed[0]
    if result.anomaly is not None:
        vitals = Vitals(result.loss, result.grad_norm)
        finding = examine(run, micro_batches, rate, local, vitals, result.anomaly)
        result = replace(result, finding=finding)
    elif result.overflowed:
        _report_overflow(run, result)
    elif options.measures_norms:
        result = replace(result, tower_norms=_tower_norms(run, local))
    return result


def _tower_norms(run: Run, local: LocalResult) -> dict[str, float]:
    """Norms from the ranks' parts of their squares, in an exchange of its own. Collective."""
    towers = sorted({tower_of(name) for name in run.engine.parameter_shapes})
    squares = [local.squared_norms.get(tower, 0.0) for tower in towers]
    totals = run.control.all_reduce_sum(squares, name="gradient norms of towers")
    return {tower: math.sqrt(total) for tower, total in zip(towers, totals, strict=True)}


def _report_overflow(run: Run, result: StepResult) -> None:
    before, after = result.loss_scale, result.next_scale(run)
    assert before is not None
    assert after is not None
    step = run.state.step + 1
    log.info("step %d: gradients overflow at a loss scale of %g", step, before.scale)
    run.report("overflow", step=step, loss_scale=before.scale, next_loss_scale=after.scale)


def agree(run: Run, local: LocalResult) -> StepResult:
    """The one small all-reduce of a step, before its update: means, norm, checksum and flags.

    The norm is the same on every rank already, unless a gradient was damaged on one: its mean lets
    all ranks see that.

    A 64-bit checksum travels as two 32-bit halves, which float64 adds exactly for up to 2**21
    ranks.

    Raises:
        Superseded: some rank's writer has found a later attempt; every rank raises it.
    """
    time_is_up, hurry = run.time_signs()
    writer = run.store.signs()
    mine = {
        **local.sums,
        "grad_norm": local.grad_norm / run.control.world_size,
        "checksum_high": float(local.checksum >> 32),
        "checksum_low": float(local.checksum & 0xFFFFFFFF),
        "time_is_up": time_is_up,
        "hurry": hurry,
        "stop_signalled": float(run.stop_signals.received is not None),
        "stop_asked": float(run.stop_file_exists()),
        **{f"writer_{name}": value for name, value in writer._asdict().items()},
    }
    totals = run.control.all_reduce_sum(list(mine.values()), name=f"step {run.state.step + 1}")
    total = dict(zip(mine, totals, strict=True))
    if total["writer_superseded"]:
        raise run.attempt.superseded()
    num_micro_batches = run.config.batch.num_micro_batches
    loss = total["loss"] / num_micro_batches
    vitals, scale = Vitals(loss, total["grad_norm"]), run.loss_scale
    # A loss that is not finite is no matter of the scale, which touches gradients only.
    overflowed = (
        scale is not None
        and scale.can_be_lowered
        and math.isfinite(loss)
        and not math.isfinite(vitals.grad_norm)
    )
    return StepResult(
        loss=loss,
        generator_loss=total["generator_loss"] / num_micro_batches,
        discriminator_loss=total["discriminator_loss"] / num_micro_batches,
        replaced_share=total["replaced_share"] / num_micro_batches,
        tokens=total["tokens"],
        grad_norm=vitals.grad_norm,
        checksum=((int(total["checksum_high"]) << 32) + int(total["checksum_low"])) % 2**64,
        stop_signalled=total["stop_signalled"] > 0,
        stop_asked=total["stop_asked"] > 0,
        writer_busy=total["writer_busy"] > 0,
        time_is_up=total["time_is_up"] > 0,
        hurry=total["hurry"] > 0,
        num_failed_saves=int(total["writer_failed"]),
        anomaly=None if overflowed else find(vitals, run.state.recent, run.config.resilience),
        loss_scale=scale,
        overflowed=overflowed,
    )
