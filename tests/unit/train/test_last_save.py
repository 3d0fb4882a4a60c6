from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from electra_dist.checkpoint.store import WriterSigns
from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import CheckpointConfig
from electra_dist.engine.protocol import LocalResult, MayApply, StepOptions
from electra_dist.resilience.guard import ExitReason
from electra_dist.resilience.preempt import StopSignals
from electra_dist.runtime.control import Control
from electra_dist.runtime.phases import Phases
from electra_dist.runtime.times import TimeBook
from electra_dist.runtime.world import World
from electra_dist.train.clock import RunClock
from electra_dist.train.loop import train
from electra_dist.train.state import RunState


def a_clock() -> RunClock:
    return RunClock(
        TimeBook(0.0, None),
        StopSignals(),
        margin_seconds=0.0,
        guessed_save_seconds=0.0,
        rows_a_step=1,
        rows_an_evaluation=1,
    )


def a_run(*, disk_takes_it: bool, received: str | None) -> Any:
    """One step of a run whose engine and stream do nothing."""
    sums = dict.fromkeys(
        ("loss", "generator_loss", "discriminator_loss", "replaced_share", "tokens"), 1.0
    )
    local = LocalResult(sums=sums, checksum=0, grad_norm=1.0)

    def step(_micro_batches: object, _rate: float, may_apply: MayApply, *_: object) -> LocalResult:
        assert may_apply(local)
        return local

    world = World.from_environment({})
    config = RECIPES["tiny"]()
    return SimpleNamespace(
        config=replace(config, schedule=replace(config.schedule, stop_step=1)),
        state=RunState(),
        fetch=list,
        phases=Phases(),
        stragglers=SimpleNamespace(compare=lambda *_: None),
        engine=SimpleNamespace(step=step, parameter_shapes={}),
        step_options=StepOptions,
        loss_scale=None,
        control=Control(group=None, store=None, world=world, timeout_seconds=1.0),
        stop_signals=SimpleNamespace(received=received),
        time_signs=lambda: (0.0, 0.0),
        clock=a_clock(),
        replicas=SimpleNamespace(case=None, exist=False),
        efficiency=None,
        stop_file_exists=lambda: False,
        store=SimpleNamespace(signs=lambda: WriterSigns(0.0, 0.0, 0.0), wait=lambda: disk_takes_it),
        ledger_step=lambda *_: None,
        ledger=None,
        record=lambda *_: None,
        frozen=None,
        report=lambda *_, **__: None,
        save=lambda: None,
    )


@pytest.mark.parametrize("received", [None, "SIGTERM"])
def test_a_run_whose_last_save_failed_does_not_say_that_its_state_is_saved(
    received: str | None,
) -> None:
    assert train(a_run(disk_takes_it=False, received=received)) is ExitReason.FAILED
    assert train(a_run(disk_takes_it=True, received=received)) is ExitReason.FINISHED


def test_a_due_save_waits_for_room_and_the_last_one_for_the_commit() -> None:
    is_busy_at = {2, 3, 8}
    run = a_run(disk_takes_it=True, received=None)
    run.config = replace(
        run.config,
        schedule=replace(run.config.schedule, stop_step=8),
        checkpoint=CheckpointConfig(every_steps=2),
    )
    done: list[str] = []

    def wait() -> bool:
        done.append("wait")
        return True

    run.world = World.from_environment({})
    run.save = lambda: done.append(f"save {run.state.step}")
    run.store = SimpleNamespace(
        signs=lambda: WriterSigns(float(run.state.step + 1 in is_busy_at), 0.0, 0.0), wait=wait
    )
    assert train(run) is ExitReason.FINISHED
    # Step 2 is saved at 4, where 4 itself was due: one save for both. At the end, with no room, the
    # loop first waits for what is in flight.
    assert done == ["save 4", "save 6", "wait", "save 8", "wait"]
