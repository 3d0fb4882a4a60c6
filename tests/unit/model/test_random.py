import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.model import random
from electra_dist.runtime.keys import fold

KEYS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5)


def splitmix64(state: int) -> int:
    """The published generator's first output from `state`, written out."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_a_seed_is_splitmix64_of_its_key_on_every_machine() -> None:
    # The known first output of splitmix64 from 0. Were it to change, no run could be repeated.
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert fold(0) == 0xE220A8397B1DCDAF


@given(KEYS)
def test_keys_are_folded_in_one_after_the_other(keys: list[int]) -> None:
    state = 0
    for key in keys:
        state = splitmix64(state ^ key)
    assert fold(*keys) == state
    assert 0 <= fold(*keys) < 2**64


@given(KEYS, st.data())
def test_any_change_of_a_key_changes_the_seed(keys: list[int], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(keys) - 1))
    other = keys.copy()
    other[index] = data.draw(st.integers(0, 2**64 - 1).filter(lambda key: key != keys[index]))
    assert fold(*keys) != fold(*other)
    assert fold(*keys) != fold(*keys, 0)


def test_neighbouring_keys_never_share_a_seed_and_their_order_matters() -> None:
    seeds = {
        fold(seed, step, micro_batch, site)
        for seed in range(8)
        for step in range(8)
        for micro_batch in range(8)
        for site in (random.DROPOUT_SITE, random.SAMPLING_SITE, random.INIT_SITE)
    }
    assert len(seeds) == 8 * 8 * 8 * 3


def dropout_mask(seed: int, step: int, micro_batch: int) -> list[float]:
    random.seed_dropout(seed, step, micro_batch)
    return torch.nn.functional.dropout(torch.ones(64), 0.5).tolist()


def test_dropout_depends_on_its_key_and_not_on_what_was_drawn_before() -> None:
    first = dropout_mask(1, 2, 3)
    torch.rand(1000)
    assert dropout_mask(1, 2, 3) == first
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)):
        assert dropout_mask(*other) != first


def test_sampling_noise_depends_on_its_key_alone_and_leaves_dropout_alone() -> None:
    noise = random.sampling_uniforms((4, 19), 1, 2, 3)
    torch.manual_seed(0)
    expected_next = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(random.sampling_uniforms((4, 19), 1, 2, 3), noise)
    assert torch.equal(torch.rand(1), expected_next)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)):
        assert not (random.sampling_uniforms((4, 19), *other) == noise).any()
    random.seed_dropout(1, 2, 3)
    assert not (torch.rand(4, 19) == noise).any()


def test_sampling_noise_is_uniform_below_one() -> None:
    noise = random.sampling_uniforms((500, 100), 0, 0, 0)
    assert noise.dtype == torch.float32
    assert noise.min() >= 0
    assert noise.max() < 1
    counts = torch.histc(noise, bins=10, min=0, max=1)
    assert counts.tolist() == pytest.approx([5000] * 10, abs=5 * 5000**0.5)
