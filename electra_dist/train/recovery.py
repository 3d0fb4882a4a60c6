"""After an anomaly: replay the step, find what is guilty, and go back if that is the answer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace

from electra_dist.data.stream import MicroBatch
from electra_dist.engine.protocol import LocalResult
from electra_dist.resilience.health import (
    Anomaly,
    Blame,
    Finding,
    Response,
    Vitals,
    blame,
    guilty,
    intervals,
    is_same,
    respond,
    skips_after,
)
from electra_dist.train.build import Run
from electra_dist.train.restore import go_on_from, restore

log = logging.getLogger(__name__)

NUM_REPLAYS = 2


def examine(
    run: Run,
    micro_batches: Sequence[MicroBatch],
    rate: float,
    local: LocalResult,
    vitals: Vitals,
    anomaly: Anomaly,
) -> Finding:
    """Run the step twice more without applying it, and say whose fault it was. Collective.

    Args:
        run: at the state before the step.
        micro_batches: this rank's passes.
        rate: of the step.
        local: what the step gave on this rank.
        vitals: what it gave on all ranks.
        anomaly: what is wrong with that.
    """
    replays: list[Vitals] = []

    def veto(again: LocalResult) -> bool:
        sums = [again.sums["loss"], again.grad_norm / run.control.world_size]
        loss, grad_norm = run.control.all_reduce_sum(sums, name="replay of a step")
        replays.append(Vitals(loss / run.config.batch.num_micro_batches, grad_norm))
        return False

    differs = False
    for _ in range(NUM_REPLAYS):
        replay = run.engine.step(micro_batches, rate, veto, run.step_options())
        again = replay.micro_batch_losses
        differs |= any(not is_same(loss, again[i]) for i, loss in local.micro_batch_losses.items())
    blamed = blame(vitals, replays)
    own = guilty(local.micro_batch_losses, anomaly)
    told = run.control.all_gather_objects([own, differs], name="guilty micro-batches")
    everything = range(run.config.batch.num_micro_batches)
    finding = Finding(
        anomaly=anomaly,
        blame=blamed,
        micro_batches=tuple(sorted(i for indices, _ in told for i in indices)) or tuple(everything),
        ranks=tuple(
            rank
            for rank, (indices, differed) in enumerate(told)
            if (indices if blamed is Blame.DATA else differed)
        ),
        response=respond(blamed, run.state.num_rollbacks, run.config.resilience),
    )
    _report(run, finding)
    return finding


def _report(run: Run, finding: Finding) -> None:
    anomaly, batch = finding.anomaly, run.config.batch
    log.error(
        "step %d is not applied: %s; replayed, it is the fault of the %s: %s",
        run.state.step + 1,
        anomaly.words(),
        finding.blame.value,
        finding.response.value,
    )
    run.report(
        "anomaly",
        step=run.state.step + 1,
        quantity=anomaly.quantity,
        value=anomaly.value if anomaly.is_spike else str(anomaly.value),
        limit=anomaly.limit if math.isfinite(anomaly.limit) else None,
        blame=finding.blame.value,
        ranks=list(finding.ranks),
        positions=intervals(
            run.state.skipped, finding.micro_batches, run.state.position, batch.micro_batch_size
        ),
        response=finding.response.value,
    )
    if finding.response is Response.SKIP:
        run.report("skip", step=run.state.step + 1, cause=anomaly.words())


def roll_back(run: Run, finding: Finding) -> None:
    """Go back to the newest checkpoint, or to the beginning, and skip what is guilty. Collective.

    A spike no later than the one before, from which this checkpoint led back to it with other data,
    is the fault of the weights: the checkpoint is abandoned for an older one, if there is one.
    Nothing is skipped where the hardware is to blame: the same steps are made once more, from
    weights that were read anew.

    Args:
        run: at the state after the step that was not applied.
        finding: about that step.
    """
    started = time.monotonic()
    before, batch = run.state, run.config.batch
    skipped = before.skipped
    if finding.blame is Blame.DATA:
        first = before.position - batch.global_batch_size
        skipped = skips_after(skipped, finding.micro_batches, first, batch.micro_batch_size)
    run.store.wait()  # what is in flight is of a healthy step
    max_step = None
    if finding.anomaly.is_spike and run.last_rollback and before.step <= run.last_rollback[0]:
        max_step = run.store.step_before(run.last_rollback[1])
    restore(run, max_step)
    run.last_rollback = before.step, run.state.step
    # The newer checkpoint may not know yet of what earlier roll-backs left out.
    state = replace(run.state, skipped=skipped, num_rollbacks=before.num_rollbacks + 1)
    go_on_from(run, state)
    run.report(
        "rollback",
        step=state.step,
        from_step=before.step,
        cause=finding.anomaly.words(),
        skipped=skipped,
        number=state.num_rollbacks,
        seconds=round(time.monotonic() - started, 3),
    )
    log.warning(
        "rolled back from step %d to %d (roll-back %d of at most %d)",
        before.step,
        state.step,
        state.num_rollbacks,
        run.config.resilience.max_rollbacks,
    )
