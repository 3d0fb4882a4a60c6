from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from electra_dist.data.order import Order
from electra_dist.data.permutation import permute

ORDERS = st.builds(
    Order,
    seed=st.integers(0, 2**63 - 1),
    num_samples=st.integers(1, 400),
    block_size=st.integers(1, 50),
    window_blocks=st.integers(1, 8),
)


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


def test_all_permutations_of_a_few_are_equally_likely() -> None:
    found = Counter(
        tuple(permute(np.arange(4), 4, 0x1234_5678_9ABC * key).tolist()) for key in range(3000)
    )
    assert chisquare([found[p] for p in permutations(range(4))]).pvalue > 1e-4


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
