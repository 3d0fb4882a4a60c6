import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.config.running import ResilienceConfig
from electra_dist.data.order import Skips, unskipped
from electra_dist.errors import UserError
from electra_dist.resilience.health import (
    Anomaly,
    Blame,
    Recent,
    Response,
    Vitals,
    blame,
    find,
    guilty,
    intervals,
    respond,
    skips_after,
    spike_limit,
)

CONFIG = ResilienceConfig(spike_deviations=6.0, spike_window_steps=8)
CALM = Vitals(loss=10.0, grad_norm=1.0)
ODD = st.sampled_from([math.nan, math.inf, -math.inf])


def window(losses: list[float], norms: list[float] | None = None) -> Recent:
    recent = Recent()
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        recent = recent.after(Vitals(loss, norm), CONFIG.spike_window_steps)
    return recent


@given(ODD)
def test_what_is_not_finite_is_found_at_the_very_first_step(value: float) -> None:
    for vitals in (Vitals(value, 1.0), Vitals(1.0, value), Vitals(value, value)):
        found = find(vitals, Recent(), CONFIG)
        assert found is not None
        assert not found.is_spike
        assert "not finite" in found.words()


def test_a_spike_is_found_once_the_window_is_full_and_only_upwards() -> None:
    losses = [10.0, 10.2, 9.8, 10.1, 9.9, 10.0, 10.3, 9.7]
    assert find(Vitals(99.0, 1.0), window(losses[:-1]), CONFIG) is None
    full = window(losses)
    # Median 10, MAD 0.15 (a float64 oracle): 10 + 6 x 1.4826 x 0.15.
    mad = float(np.median(np.abs(np.array(losses) - np.median(losses))))
    limit = float(np.median(losses)) + 6 * 1.4826 * mad
    assert spike_limit(full.losses, CONFIG) == pytest.approx(limit)
    assert find(Vitals(limit - 0.01, 1.0), full, CONFIG) is None
    found = find(Vitals(limit + 0.01, 1.0), full, CONFIG)
    assert found is not None
    assert (found.quantity, found.is_spike) == ("loss", True)
    assert find(Vitals(0.1, 0.001), full, CONFIG) is None
    # Norms that never moved have a deviation of one percent: 1 + 6 x 0.01.
    assert find(Vitals(10.0, 1.059), full, CONFIG) is None
    grown = find(Vitals(10.0, 1.061), full, CONFIG)
    assert grown is not None
    assert grown.quantity == "grad_norm"
    assert find(Vitals(99.0, 99.0), full, replace(CONFIG, spike_deviations=None)) is None


def test_what_is_not_finite_is_named_before_a_spike() -> None:
    found = find(Vitals(99.0, math.nan), window([10.0] * 8), CONFIG)
    assert found is not None
    assert found.quantity == "grad_norm"


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=30), st.integers(0, 30))
def test_a_window_that_went_through_json_decides_as_the_one_that_did_not(
    losses: list[float], cut: int
) -> None:
    calm = resumed = Recent()
    for number, loss in enumerate(losses):
        if number == cut:
            resumed = Recent.from_json(json.loads(json.dumps(resumed.to_json())))
        vitals = Vitals(loss, 1 / loss)
        assert find(vitals, calm, CONFIG) == find(vitals, resumed, CONFIG)
        calm, resumed = calm.after(vitals, 8), resumed.after(vitals, 8)
    assert calm == resumed
    assert len(calm.losses) == min(8, len(losses))


def test_micro_batches_are_guilty_by_their_own_loss_or_all_together() -> None:
    no_number = Anomaly(quantity="loss", value=math.nan, limit=12.0)
    assert guilty({0: 10.0, 3: math.nan, 6: math.inf}, no_number) == [3, 6]
    spike = Anomaly(quantity="loss", value=20.0, limit=12.0)
    assert guilty({1: 50.0, 2: 11.9}, spike) == [1]
    gradient = Anomaly(quantity="grad_norm", value=20.0, limit=2.0)
    assert guilty({1: 50.0, 2: 11.9}, gradient) == []


@pytest.mark.parametrize(
    ("replays", "expected"),
    [
        ([CALM, CALM], Blame.HARDWARE),
        ([Vitals(math.nan, math.nan), CALM], Blame.HARDWARE),
        ([Vitals(math.nan, math.nan)] * 2, Blame.DATA),
        ([Vitals(math.inf, math.nan)] * 2, Blame.DATA),
        ([Vitals(10.0, math.nan)] * 2, Blame.HARDWARE),
    ],
)
def test_what_comes_again_is_the_datas_fault(replays: list[Vitals], expected: Blame) -> None:
    assert blame(Vitals(math.nan, math.nan), replays) is expected


def test_a_spike_comes_again_but_for_rounding() -> None:
    spike = Vitals(900.0, 80.0)
    assert blame(spike, [Vitals(900.1, 80.01), spike]) is Blame.DATA
    assert blame(spike, [spike, Vitals(900.0, 60.0)]) is Blame.HARDWARE
    assert blame(spike, [spike, CALM]) is Blame.HARDWARE


def test_the_policy() -> None:
    def answer(policy: str, blamed: Blame, made: int = 0) -> Response:
        config = ResilienceConfig(on_anomaly=policy, max_rollbacks=2)  # type: ignore[arg-type]
        return respond(blamed, made, config)

    assert answer("rollback", Blame.DATA) is Response.ROLL_BACK
    assert answer("rollback", Blame.HARDWARE, 1) is Response.ROLL_BACK
    assert answer("rollback", Blame.DATA, 2) is Response.STOP
    assert answer("skip", Blame.DATA, 99) is Response.SKIP
    assert answer("skip", Blame.HARDWARE) is Response.STOP
    assert answer("stop", Blame.DATA) is Response.STOP


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=3),
    st.sets(st.integers(0, 5), min_size=1),
    st.integers(0, 50),
    st.integers(1, 4),
)
def test_skipping_takes_exactly_the_guilty_positions_out_of_the_sequence(
    pieces: list[tuple[int, int]], micro_batches: set[int], step_start: int, size: int
) -> None:
    """The oracle: write the used positions down, strike the guilty ones, compare."""
    skips: Skips = ()
    end = 0
    for gap, length in pieces:
        skips = (*skips, (end + gap + 1, end + gap + 1 + length))
        end = skips[-1][1]
    used = unskipped(np.arange(400, dtype=np.int64), skips).tolist()
    struck = {used[step_start + i * size + place] for i in micro_batches for place in range(size)}
    expected = [position for position in used if position not in struck]
    order = list(micro_batches)
    random.Random(size).shuffle(order)
    after = skips_after(skips, order, step_start, size)
    found = unskipped(np.arange(len(expected), dtype=np.int64), after).tolist()
    assert found == expected
    named = intervals(skips, sorted(micro_batches), step_start, size)
    assert struck <= {p for first, last in named for p in range(first, last)}


@pytest.mark.parametrize(
    "values", [{"spike_window_steps": 3}, {"spike_deviations": 0.0}, {"max_rollbacks": 0}]
)
def test_knobs_are_checked(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        ResilienceConfig(**values)  # type: ignore[arg-type]


def test_the_window_costs_little_of_a_state() -> None:
    rng = random.Random(0)
    recent = Recent()
    for _ in range(300):
        recent = recent.after(Vitals(rng.uniform(9, 11), rng.uniform(0.5, 2)), 128)
    assert len(recent.losses) == len(recent.grad_norms) == 128
    assert len(json.dumps(recent.to_json())) < 6000
