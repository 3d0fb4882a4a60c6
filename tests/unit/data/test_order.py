from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from electra_dist.data.order import Order, Skips, skipping, unskipped
from tests.unit.data import order_oracle

ORDERS = st.builds(
    Order,
    seed=st.integers(0, 2**63 - 1),
    num_samples=st.integers(1, 400),
    block_size=st.integers(1, 50),
    window_blocks=st.integers(1, 8),
)
# Lanes and several corpora too: three rows at least, as there are up to three lanes.
BLENDED = st.integers(1, 3).flatmap(
    lambda num_corpora: st.builds(
        Order,
        seed=st.integers(0, 2**63 - 1),
        num_samples=st.tuples(*[st.integers(3, 90)] * num_corpora),
        block_size=st.integers(1, 20),
        window_blocks=st.integers(1, 5),
        weights=st.tuples(*[st.integers(1, 7)] * num_corpora),
        num_lanes=st.integers(1, 3),
        lane_run=st.integers(1, 5),
    )
)
# A gap before each interval, and its length.
SKIPS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=5)


def skips_of(pairs: list[tuple[int, int]]) -> Skips:
    skips, end = [], 0
    for gap, length in pairs:
        skips.append((end + gap, end + gap + length))
        end += gap + length
    return tuple(skips)


def epoch_ids(order: Order, epoch: int) -> np.ndarray:
    return order.sample_ids(np.arange(order.num_samples) + epoch * order.num_samples)


@given(order=ORDERS, epoch=st.integers(0, 2**40))
@settings(max_examples=150, deadline=None)
def test_each_epoch_holds_every_sample_once(order: Order, epoch: int) -> None:
    assert sorted(epoch_ids(order, epoch)) == list(range(order.num_samples))


@given(order=ORDERS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_slice_in_any_order_gives_the_same_ids(order: Order, data: st.DataObject) -> None:
    # Three epochs at once, so that slices straddle their ends.
    whole = order.sample_ids(np.arange(3 * order.num_samples))
    asked = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=60))
    assert order.sample_ids(np.array(asked, np.int64)).tolist() == whole[asked].tolist()
    size = data.draw(st.integers(9, 70))
    slices = [np.arange(s, min(s + size, len(whole))) for s in range(0, len(whole), size)]
    assert np.concatenate([order.sample_ids(s) for s in slices]).tolist() == whole.tolist()


def test_a_micro_batch_may_straddle_two_epochs() -> None:
    order = Order(seed=3, num_samples=100, block_size=8, window_blocks=4)
    straddling = order.sample_ids(np.arange(95, 105))
    assert straddling[:5].tolist() == epoch_ids(order, 0)[-5:].tolist()
    assert straddling[5:].tolist() == epoch_ids(order, 1)[:5].tolist()


@given(order=ORDERS, epoch=st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_a_window_of_reads_takes_whole_blocks(order: Order, epoch: int) -> None:
    num_blocks, tail = divmod(order.num_samples, order.block_size)
    ids = epoch_ids(order, epoch)
    in_tail = ids >= num_blocks * order.block_size
    # The partial block is read in one go, between two windows ...
    places = np.flatnonzero(in_tail)
    assert len(places) == tail
    window_size = order.window_blocks * order.block_size
    if tail:
        assert places[-1] - places[0] == tail - 1
        assert places[0] % window_size == 0 or places[0] == num_blocks * order.block_size
    # ... and each window of the others reads so many blocks, each of them whole.
    rest = ids[~in_tail]
    for start in range(0, len(rest), window_size):
        window = rest[start : start + window_size]
        blocks = Counter(window // order.block_size)
        assert set(blocks.values()) == {order.block_size}
        assert len(blocks) <= order.window_blocks


def test_a_batch_is_mixed_from_many_blocks() -> None:
    order = Order(seed=0, num_samples=64 * 512 * 3, block_size=512, window_blocks=64)
    first_batch = order.sample_ids(np.arange(128))
    assert len(set(first_batch // 512)) > 45  # 55.5 of 64 are expected from a uniform draw
    assert abs(np.corrcoef(np.arange(128), first_batch)[0, 1]) < 0.3


def test_each_window_is_mixed_in_its_own_way() -> None:
    order = Order(seed=0, num_samples=10 * 4 * 16, block_size=16, window_blocks=4)
    windows = (epoch_ids(order, 0) % 16).reshape(10, 64)
    assert len({tuple(window) for window in windows}) == 10


def test_epochs_and_seeds_give_other_orders() -> None:
    orders = [Order(seed=s, num_samples=333, block_size=16, window_blocks=4) for s in range(20)]
    sequences = [tuple(epoch_ids(order, e)) for order in orders for e in range(20)]
    assert len(set(sequences)) == len(sequences)
    # Unrelated, not shifted: two random orders of 333 agree at one place on average.
    same_place = [np.equal(a, b).sum() for a, b in pairwise(sequences)]
    assert np.mean(same_place) < 1.5


def test_every_sample_comes_first_equally_often() -> None:
    order = Order(seed=5, num_samples=21, block_size=2, window_blocks=3)
    firsts = order.sample_ids(np.arange(2500) * 21)
    # The odd one out stands alone between two of five windows, so it is first once in five.
    counts = np.bincount(firsts, minlength=21)
    assert abs(counts[20] / 2500 - 1 / 5) < 0.04
    assert chisquare(counts[:20]).pvalue > 1e-4


def test_seeking_far_costs_the_same_and_works() -> None:
    order = Order(seed=1, num_samples=2**40 + 12345)
    far = np.array([2**62, 2**61 + 7, 5], np.int64)
    ids = order.sample_ids(far)
    assert ((ids >= 0) & (ids < order.num_samples)).all()
    assert ids[::-1].tolist() == order.sample_ids(far[::-1]).tolist()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        Order(seed=0, num_samples=5).sample_ids(np.array([3, -1]))
    for wrong in ({"num_samples": 0}, {"block_size": 0}, {"window_blocks": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Order(**{"seed": 0, "num_samples": 5, **wrong})
    assert len(Order(seed=0, num_samples=5).sample_ids(np.array([], np.int64))) == 0
    with pytest.raises(ValueError, match=r"weights = \(1, 2\) must be 1 numbers"):
        Order(seed=0, num_samples=5, weights=(1, 2))
    with pytest.raises(ValueError, match="num_lanes = 4 must be at most 3"):
        Order(seed=0, num_samples=(9, 3), weights=(1, 2), num_lanes=4)


@given(order=BLENDED, first=st.integers(0, 10**13), data=st.data())
@settings(max_examples=60)
def test_it_is_what_plain_python_computes_number_by_number(
    order: Order, first: int, data: st.DataObject
) -> None:
    positions = [first + n for n in range(20)] + data.draw(st.lists(st.integers(0, 10**13)))
    expected = [order_oracle.sample_id(order, position) for position in positions]
    assert order.sample_ids(np.array(positions, np.int64)).tolist() == expected


@given(order=BLENDED)
@settings(max_examples=40)
def test_a_lane_reads_its_own_part_of_each_corpus_and_all_of_it_once_an_epoch(
    order: Order,
) -> None:
    pattern = order_oracle.pattern(order.weights)
    starts = np.cumsum([0, *order.sizes])
    owned = []
    for lane in range(order.num_lanes):
        # As many periods of the pattern as give two epochs of every part.
        num_periods = max(
            -(-2 * size // pattern.count(corpus)) for corpus, size in enumerate(order.sizes)
        )
        ids = order.lane_ids(lane, np.arange(num_periods * len(pattern)))
        corpora = np.searchsorted(starts, ids, side="right") - 1
        assert corpora.tolist() == pattern * num_periods
        for corpus, size in enumerate(order.sizes):
            part = np.unique(ids[corpora == corpus])
            assert part.tolist() == list(range(part[0], part[-1] + 1))
            assert len(part) in (size // order.num_lanes, -(-size // order.num_lanes))
            for epoch in range(2):
                once = ids[corpora == corpus][epoch * len(part) : (epoch + 1) * len(part)]
                assert sorted(once) == part.tolist()
            owned += part.tolist()
    assert sorted(owned) == list(range(starts[-1]))


def test_lanes_take_turns_of_a_run() -> None:
    order = Order(seed=1, num_samples=90, num_lanes=3, lane_run=4)
    lanes = order.sample_ids(np.arange(36)) // 30
    assert lanes.tolist() == np.repeat([0, 1, 2] * 3, 4).tolist()


def test_lanes_and_corpora_of_one_size_have_unrelated_orders() -> None:
    orders = Order(seed=1, num_samples=(400, 400), weights=(1, 1), num_lanes=2, block_size=16)
    sequences = [
        orders.lane_ids(lane, np.arange(corpus, 400, 2)) % 200
        for lane in (0, 1)
        for corpus in (0, 1)
    ]
    assert all(len(np.unique(sequence)) == 200 for sequence in sequences)
    assert np.mean([np.equal(a, b).sum() for a, b in pairwise(sequences)]) < 5


def test_weights_with_a_common_divisor_are_the_same_blend() -> None:
    one, other = (
        Order(seed=1, num_samples=(50, 70), weights=w, block_size=4) for w in ((2, 1), (60, 30))
    )
    assert one.sample_ids(np.arange(500)).tolist() == other.sample_ids(np.arange(500)).tolist()


def test_beyond_a_trillion_nothing_overflows() -> None:
    order = Order(
        seed=1, num_samples=(10**12, 3 * 10**12), weights=(1, 65_535), num_lanes=1024, lane_run=32
    )
    for first in (6 * 10**11, 10**15, 2**62):
        positions = np.arange(first, first + 300)
        expected = [int(lane) for lane in positions // 32 % 1024]
        ids = order.sample_ids(positions)
        parts = [
            id_ * 1024 // 10**12 if id_ < 10**12 else (id_ - 10**12) * 1024 // (3 * 10**12)
            for id_ in ids.tolist()
        ]
        assert parts == expected


@given(pairs=SKIPS)
def test_skipped_positions_are_left_out_and_no_others(pairs: list[tuple[int, int]]) -> None:
    skips = skips_of(pairs)
    everything = [p for p in range(300) if not any(a <= p < b for a, b in skips)]
    used = np.arange(len(everything))
    assert unskipped(used, skips).tolist() == everything
    assert [order_oracle.unskipped(n, skips) for n in range(len(everything))] == everything
    far = np.array([10**15, 3], np.int64)
    assert unskipped(far, skips)[0] == 10**15 + sum(b - a for a, b in skips)


@given(pairs=SKIPS, first=st.integers(0, 60), length=st.integers(1, 30))
def test_skipping_used_positions_leaves_out_just_these(
    pairs: list[tuple[int, int]], first: int, length: int
) -> None:
    skips = skips_of(pairs)
    before = unskipped(np.arange(200), skips).tolist()
    more = skipping(skips, first, first + length)
    after = unskipped(np.arange(200 - length), more).tolist()
    assert after == before[:first] + before[first + length :]
    assert all(one[1] < other[0] for one, other in pairwise(more))  # touching ones are merged
