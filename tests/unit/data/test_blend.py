import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.data.blend import make_blend, spread
from tests.unit.data import order_oracle

WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=9).map(tuple)


@given(WEIGHTS)
@settings(max_examples=150)
def test_every_stretch_from_the_start_is_within_one_row_of_its_proportion(
    weights: tuple[int, ...],
) -> None:
    pattern = np.array(spread(weights))
    total = sum(weights)
    assert np.bincount(pattern, minlength=len(weights)).tolist() == list(weights)
    bound = 1 - 1 / (2 * len(weights) - 2) if len(weights) > 1 else 0
    for corpus, weight in enumerate(weights):
        ideal = np.arange(1, total + 1) * weight / total
        assert np.abs(np.cumsum(pattern == corpus) - ideal).max() <= bound + 1e-9


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5).map(tuple))
@settings(max_examples=60)
def test_it_is_tijdemans_rule(weights: tuple[int, ...]) -> None:
    assert spread(weights) == order_oracle.pattern(weights)


@given(WEIGHTS, st.integers(0, 10**15))
@settings(max_examples=60)
def test_each_corpus_is_read_in_sequence_and_exactly_as_often_as_its_weight_says(
    weights: tuple[int, ...], first: int
) -> None:
    positions = np.arange(first, first + sum(weights))
    corpora, indices = make_blend(weights).locate(positions)
    for corpus, weight in enumerate(weights):
        of_corpus = indices[corpora == corpus]
        assert len(of_corpus) == weight
        assert (np.diff(of_corpus) == 1).all()
    start = [make_blend(weights).locate(np.arange(200))[1][n] for n in range(200)]
    assert min(start) == 0


def test_a_few_patterns_by_hand() -> None:
    assert spread([3, 1]) == [0, 0, 1, 0]
    assert spread([1, 1, 1]) == [0, 1, 2]
    assert make_blend((60, 30)).corpus_S.tolist() == make_blend((2, 1)).corpus_S.tolist()


def test_the_largest_blend_that_a_config_may_ask_for() -> None:
    blend = make_blend((65_000, 500, 35, 1))
    assert np.bincount(blend.corpus_S).tolist() == [65_000, 500, 35, 1]
