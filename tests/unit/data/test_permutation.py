from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare, norm

from electra_dist.data.permutation import permute
from tests.unit.data import order_oracle

# A power of two needs no cycle walking; one more than that needs it for half of all.
SIZES = (2**16, 2**16 + 1, 100_003)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_it_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


@given(size=st.integers(1, 10**13), key=st.integers(0, 2**64 - 1), data=st.data())
def test_it_is_what_plain_python_computes(size: int, key: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), max_size=10))
    expected = [order_oracle.permute(index, size, key) for index in indices]
    assert permute(np.array(indices, np.int64), size, key).tolist() == expected


def test_all_permutations_of_a_few_are_equally_likely() -> None:
    found = Counter(
        tuple(permute(np.arange(4), 4, 0x1234_5678_9ABC * key).tolist()) for key in range(3000)
    )
    assert chisquare([found[p] for p in permutations(range(4))]).pvalue > 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_where_an_index_goes_does_not_depend_on_it(size: int) -> None:
    """Chi-square of (16 ranges of indices) x (16 ranges of images), over keys."""
    counts = np.zeros((16, 16))
    for key in range(8):
        # A tenth of the indices: of all, the margins are fixed, and the counts too even.
        indices = np.arange(key, size, 10)
        images = permute(indices, size, key * 0x9E3779B9)
        np.add.at(counts, (indices * 16 // size, images * 16 // size), 1)
    assert 1e-4 < chi2_contingency(counts).pvalue < 1 - 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_neighbours_go_to_unrelated_places(size: int) -> None:
    """Serial correlation of the images at lags that a Feistel network might show: 1, 2, 4 ..."""
    images = permute(np.arange(size), size, 12345).astype(np.float64)
    images -= images.mean()
    for lag in (1, 2, 3, 4, 8, 16, 64, 256, 1024):
        correlation = (images[:-lag] * images[lag:]).mean() / images.var()
        assert 2 * norm.sf(abs(correlation) * np.sqrt(size)) > 1e-4, lag


def test_images_of_neighbours_are_as_far_apart_as_any_two() -> None:
    distances = np.abs(np.diff(permute(np.arange(2**16), 2**16, 7))) / 2**16
    # |a - b| of two uniform numbers falls below x with probability 1 - (1 - x)^2.
    expected = np.diff([1 - (1 - x) ** 2 for x in np.linspace(0, 1, 17)])
    counts = np.histogram(distances, np.linspace(0, 1, 17))[0]
    assert chisquare(counts, expected * len(distances)).pvalue > 1e-4
