import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

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


def mask_of(key: Tensor, shape: tuple[int, ...], p: float, like: Tensor) -> Tensor:
    return random.keep_mask(random.site_words(key[None], shape)[0], shape, p, like)


def dropout_mask(seed: int, step: int, micro_batch: int) -> list[float]:
    random.seed_dropout(seed, step, micro_batch)
    key = random.site_keys(1, torch.device("cpu"))[0]
    mask: list[float] = mask_of(key, (64,), 0.5, torch.ones(1)).tolist()
    return mask


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


def masks(num_sites: int, shape: tuple[int, ...], p: float) -> Tensor:
    random.seed_dropout(0, 0, 0)
    keys = random.site_keys(num_sites, torch.device("cpu"))
    words = random.site_words(keys, shape)
    return torch.stack([random.keep_mask(of_site, shape, p, torch.ones(1)) for of_site in words])


@pytest.mark.parametrize("shape", [(1024, 1024), (8192, 128), (64, 16384)])
@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_a_mask_drops_its_share_in_every_row_column_and_lane(
    shape: tuple[int, int], p: float
) -> None:
    mask = masks(1, shape, p)[0]
    share = random.dropped_lanes(p) / 2**16
    assert share == pytest.approx(p, abs=2**-17)
    assert random.keep_scale(p) == pytest.approx(1 / (1 - share))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    lanes = mask.view(shape[0] // 2, 2, shape[1])
    for dims in ((0, 1), (1, 2), (0, 2)):
        kept = lanes.sum(dims)
        each = mask.numel() / len(kept)
        deviation = (each * share * (1 - share)) ** 0.5
        # 4: the tail of a small count is longer than the normal distribution's.
        assert ((kept - each * (1 - share)).abs() < 5.5 * deviation + 4).all()


def test_dropping_a_tenth_drops_6554_of_65536() -> None:
    assert random.dropped_lanes(0.1) / 2**16 == pytest.approx(0.100006, abs=1e-6)


@pytest.mark.parametrize("shape", [(1024, 1024), (8192, 128)])
def test_masks_are_independent_of_each_other_and_within_themselves(shape: tuple[int, int]) -> None:
    grids = masks(2, shape, 0.1) - 0.9
    first, second = grids.flatten(1)
    limit = 5 * 0.09 / first.numel() ** 0.5

    def together(*parts: Tensor) -> float:
        return abs(float(torch.stack(parts).prod(0).mean()))

    assert together(first, second) < limit
    for lag in (1, 2, 3, 64, 128, 256, 1024, 2048, 4096):
        assert together(first[lag:], first[:-lag]) < limit
        assert together(first[lag:], second[:-lag]) < limit
    # The four corners of a rectangle, whose sums of hashes cancel out before they are mixed: of one
    # lane, and of both.
    for rows in (2, 1):
        grid = grids[0]
        corners = (grid[:-rows, :-1], grid[:-rows, 1:], grid[rows:, :-1], grid[rows:, 1:])
        assert together(*corners) < 5 * 0.09**2 / first.numel() ** 0.5


def test_a_mask_takes_any_shape_and_the_type_of_what_it_masks() -> None:
    key = random.site_keys(1, torch.device("cpu"))[0]
    for shape in ((), (1,), (3, 5, 7), (2, 1, 2049), (0, 4), (3, 0)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            mask = mask_of(key, shape, 0.25, torch.ones(1, dtype=dtype))
            assert mask.shape == shape
            assert mask.dtype == dtype


def test_an_elements_bit_follows_from_its_row_and_column_not_from_how_many_there_are() -> None:
    key = random.site_keys(1, torch.device("cpu"))[0]
    mask = mask_of(key, (9, 300), 0.25, torch.ones(1))
    assert torch.equal(mask_of(key, (5, 300), 0.25, torch.ones(1)), mask[:5])
    # Words of a site serve all masks up to their shape.
    words = random.site_words(key[None], (100, 4000))[0]
    found = random.keep_mask(words, (3, 3, 300), 0.25, torch.ones(1))
    assert torch.equal(found.flatten(0, 1), mask)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.1, 0.5]))
@settings(max_examples=20, deadline=None)
def test_the_form_that_is_compiled_makes_the_same_mask(rows: int, columns: int, p: float) -> None:
    torch._dynamo.reset()
    words = random.site_words(random.site_keys(1, torch.device("cpu")), (rows, columns))[0]
    compiled = torch.compile(random.keep_mask, backend="eager", fullgraph=True)
    like = torch.ones(1, dtype=torch.float64)
    found = compiled(words, (rows, columns), p, like)
    assert torch.equal(found, random.keep_mask(words, (rows, columns), p, like))


def test_a_mask_follows_from_its_key_alone() -> None:
    key = torch.tensor([1234567, 7654321], dtype=torch.int32)
    dropped = [row.nonzero().flatten().tolist() for row in mask_of(key, (2, 20), 0.3, key) == 0]
    # Were these columns to change, no run could be repeated.
    assert dropped == [[0, 2, 8, 9, 10], [3, 4, 13, 15, 16, 19]]
