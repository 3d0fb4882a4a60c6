import math

from hypothesis import given
from hypothesis import strategies as st

from electra_dist.resilience.deadline import (
    Ahead,
    Pace,
    guessed_evaluation_seconds,
    guessed_save_seconds,
    slow_one,
    time_signs,
)

SECONDS = st.floats(1.0, 1e3)
PACES = st.builds(Pace, step_seconds=SECONDS, save_seconds=SECONDS, evaluation_seconds=SECONDS)


@given(
    end=st.floats(1.0, 500.0),
    pace=PACES,
    save_every=st.integers(1, 20),
    eval_every=st.integers(1, 20),
    shares=st.lists(st.floats(0.2, 1.0), min_size=1, max_size=50),
)
def test_a_run_that_is_no_slower_than_its_pace_has_saved_before_the_end(
    end: float, pace: Pace, save_every: int, eval_every: int, shares: list[float]
) -> None:
    """A run as the loop plays it; everything takes a share of what it takes when it is slow."""
    now, saved_at, step = 0.0, 0.0, 0
    while True:
        step += 1
        share = shares[step % len(shares)]
        now += share * pace.step_seconds
        is_due = step % save_every == 0
        ahead = Ahead(
            evaluates_next=(step + 1) % eval_every == 0,
            num_saves=int(saved_at > now) + int(is_due),
        )
        signs = time_signs(end - now, pace, ahead)
        if step % eval_every == 0 and not (signs.is_up and signs.hurry):
            now += share * pace.evaluation_seconds
        if is_due or signs.is_up:
            saved_at = max(now, saved_at) + share * pace.save_seconds
        if signs.is_up:
            break
        assert now < end
    # The first boundary comes whatever happens: no clock can save a job that is too short for it.
    assert saved_at <= end * (1 + 1e-9) or step == 1


def test_the_last_safe_step() -> None:
    pace = Pace(step_seconds=2.0, save_seconds=5.0, evaluation_seconds=30.0)
    plain = Ahead(evaluates_next=False, num_saves=0)
    assert not time_signs(math.inf, pace, plain).is_up
    assert not time_signs(7.0, pace, plain).is_up
    assert time_signs(6.9, pace, plain).is_up
    # A save in flight, or one that begins here, is waited for first.
    assert time_signs(11.9, pace, Ahead(evaluates_next=False, num_saves=1)).is_up
    assert not time_signs(12.0, pace, Ahead(evaluates_next=False, num_saves=1)).is_up
    # An evaluation after the next step must fit as well.
    assert time_signs(36.9, pace, Ahead(evaluates_next=True, num_saves=0)).is_up
    assert not time_signs(37.0, pace, Ahead(evaluates_next=True, num_saves=0)).is_up
    assert time_signs(34.9, pace, plain).hurry
    assert not time_signs(35.0, pace, plain).hurry
    assert time_signs(-1.0, pace, plain).is_up


def test_the_slow_one_is_the_99th_percentile() -> None:
    assert slow_one([], otherwise=4.0) == 4.0
    assert slow_one([3.0, 9.0, 1.0], otherwise=4.0) == 9.0
    assert slow_one([1.0] * 99 + [50.0], otherwise=4.0) == 1.0
    assert slow_one([1.0] * 98 + [50.0] * 2, otherwise=4.0) == 50.0


def test_what_nobody_has_measured_is_guessed_from_its_size() -> None:
    assert guessed_save_seconds(0) == 2.0
    assert guessed_save_seconds(1e9) == 12.0
    assert guessed_evaluation_seconds(2.0, rows_a_step=32, num_rows=100) == 8.0
