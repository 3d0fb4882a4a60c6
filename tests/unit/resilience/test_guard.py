import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import (
    CheckpointConfig,
    MetricsConfig,
    ResilienceConfig,
    RunConfig,
    ScheduleConfig,
)
from electra_dist.resilience.guard import Decision, ExitReason, Signs, decide
from electra_dist.resilience.health import Response

CONFIG = replace(
    RECIPES["tiny"](),
    schedule=ScheduleConfig(num_steps=100, warmup_steps=0),
    checkpoint=CheckpointConfig(every_steps=10),
    metrics=MetricsConfig(eval_every=25),
    resilience=ResilienceConfig(compare_replicas_every=None),
)


def signs(step: int = 3, **changes: float) -> Signs:
    plain = Signs(
        step=step,
        loss=1.0,
        grad_norm=1.0,
        stop_signalled=False,
        stop_asked=False,
        writer_busy=False,
        save_overdue=False,
    )
    return replace(plain, **changes)


NUMBERS = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf])
SIGNS = st.builds(
    Signs,
    step=st.integers(1, 130),
    loss=NUMBERS,
    grad_norm=NUMBERS,
    stop_signalled=st.booleans(),
    stop_asked=st.booleans(),
    writer_busy=st.booleans(),
    save_overdue=st.booleans(),
    time_is_up=st.booleans(),
    hurry=st.booleans(),
)
CONFIGS = st.builds(
    lambda every, evaluate, stop: replace(
        CONFIG,
        checkpoint=CheckpointConfig(every_steps=every),
        metrics=MetricsConfig(eval_every=evaluate),
        schedule=replace(CONFIG.schedule, stop_step=stop),
    ),
    st.integers(1, 40),
    st.integers(1, 40),
    st.none() | st.integers(1, 130),
)


@given(CONFIGS, SIGNS)
@example(CONFIG, signs(100, loss=math.nan))
@example(CONFIG, signs(100, stop_signalled=True, stop_asked=True))
def test_whatever_comes_state_is_saved_before_leaving_and_never_after_a_broken_step(
    config: RunConfig, found: Signs
) -> None:
    decision = decide(config, found)
    is_broken = not (math.isfinite(found.loss) and math.isfinite(found.grad_norm))
    if is_broken:
        assert decision == Decision(
            evaluate=False, save=False, save_overdue=False, stop=ExitReason.FAILED
        )
        return
    assert decision.save or decision.stop is None
    # What is due is saved, or stays due: never dropped, and never given to a writer without room.
    is_due = found.save_overdue or found.step % config.checkpoint.every_steps == 0
    assert (decision.save or decision.save_overdue) == (is_due or decision.stop is not None)
    assert not (decision.save and decision.save_overdue)
    assert decision.stop is not None or not (decision.save and found.writer_busy)
    assert decision.stop is not ExitReason.FAILED
    # Finished is finished, whoever asked for a stop in the same step.
    is_finished = found.step >= config.schedule.last_step
    assert (decision.stop is ExitReason.FINISHED) == is_finished
    is_evaluation_due = is_finished or found.step % config.metrics.eval_every == 0
    assert decision.evaluate == (
        is_evaluation_due and not (found.hurry and decision.stop is not None)
    )
    if not is_finished:
        asked = found.stop_signalled or found.stop_asked or found.time_is_up
        assert (decision.stop is not None) == asked


@pytest.mark.parametrize(
    ("found", "evaluate", "save", "stop"),
    [
        (signs(3), False, False, None),
        (signs(10), False, True, None),
        (signs(25), True, False, None),
        (signs(50), True, True, None),
        (signs(99), False, False, None),
        (signs(100), True, True, ExitReason.FINISHED),
        (signs(100, stop_signalled=True), True, True, ExitReason.FINISHED),
        (signs(3, stop_signalled=True), False, True, ExitReason.STOPPED),
        (signs(3, stop_asked=True), False, True, ExitReason.ASKED),
        # Both at once: a cluster that takes the node back wants the job requeued.
        (signs(3, stop_signalled=True, stop_asked=True), False, True, ExitReason.STOPPED),
        (signs(3, time_is_up=True, stop_asked=True), False, True, ExitReason.STOPPED),
        # An evaluation that is due is left out where only the save fits before the end.
        (signs(25, stop_signalled=True), True, True, ExitReason.STOPPED),
        (signs(25, stop_signalled=True, hurry=True), False, True, ExitReason.STOPPED),
        (signs(100, hurry=True), False, True, ExitReason.FINISHED),
        (signs(25, hurry=True), True, False, None),
        (signs(10, loss=math.nan), False, False, ExitReason.FAILED),
        (signs(10, grad_norm=math.inf), False, False, ExitReason.FAILED),
        (signs(3, loss=-math.inf, stop_signalled=True), False, False, ExitReason.FAILED),
    ],
)
def test_the_table(found: Signs, evaluate: bool, save: bool, stop: ExitReason | None) -> None:
    assert decide(CONFIG, found) == Decision(
        evaluate=evaluate, save=save, save_overdue=False, stop=stop, compare=save
    )


def test_a_save_that_finds_no_room_is_made_at_the_first_step_that_has_it() -> None:
    is_busy_at = {10, 11, 12, 20, 21}
    saved, overdue = [], False
    for step in range(1, 25):
        decision = decide(CONFIG, signs(step, writer_busy=step in is_busy_at, save_overdue=overdue))
        overdue = decision.save_overdue
        saved += [step] if decision.save else []
    assert saved == [13, 22]
    # A stop does not go without its save: the loop waits for room.
    stopped = decide(CONFIG, signs(10, writer_busy=True, stop_signalled=True))
    assert (stopped.save, stopped.save_overdue) == (True, False)


def test_stop_step_finishes_early() -> None:
    config = replace(CONFIG, schedule=replace(CONFIG.schedule, stop_step=60))
    assert decide(config, signs(59)).stop is None
    assert decide(config, signs(60)) == Decision(
        evaluate=True, save=True, save_overdue=False, stop=ExitReason.FINISHED, compare=True
    )


def test_exit_codes_are_those_that_launchers_know() -> None:
    codes = {reason.value: reason.exit_code for reason in ExitReason}
    assert codes == {"finished": 0, "asked": 0, "stopped": 75, "failed": 1}


@pytest.mark.parametrize("loss", [math.nan, 99.0])
def test_an_anomaly_is_answered_before_anything_else(loss: float) -> None:
    """Also at a step that is due for a save, with a stop waiting."""
    found = signs(10, loss=loss, stop_signalled=True)
    rolled_back = decide(CONFIG, replace(found, response=Response.ROLL_BACK))
    assert rolled_back == Decision(
        evaluate=False, save=False, save_overdue=False, stop=None, roll_back=True
    )
    stopped = decide(CONFIG, replace(found, response=Response.STOP))
    assert (stopped.save, stopped.stop) == (False, ExitReason.FAILED)
    skipped = decide(CONFIG, replace(found, response=Response.SKIP))
    assert skipped == decide(CONFIG, signs(10, stop_signalled=True))


@given(CONFIGS, SIGNS, st.none() | st.integers(1, 40))
def test_nothing_is_saved_that_was_not_compared(
    config: RunConfig, found: Signs, every: int | None
) -> None:
    config = replace(config, resilience=ResilienceConfig(compare_replicas_every=every))
    decision = decide(config, found)
    assert decision.compare or not decision.save
    if every is not None and found.step % every == 0 and decision.stop is not ExitReason.FAILED:
        assert decision.compare
