from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.data import dedup
from electra_dist.data.store import Array


def naive(keys: list[tuple[int, ...]]) -> dict[int, int]:
    """Row -> the first row with the same key, for rows that are not that one."""
    first: dict[tuple[int, ...], int] = {}
    found = {}
    for row, key in enumerate(keys):
        if first.setdefault(key, row) != row:
            found[row] = first[key]
    return found


def hashed(numbers: list[int], width: int) -> Array:
    """uint64 [n, width]: evenly spread keys, equal where the numbers are."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, 2**64, (12, width), np.uint64)
    table[6:, 0] = table[:6, 0]  # half of the keys differ in the last word only
    return table[numbers] if numbers else np.zeros((0, width), np.uint64)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 11), max_size=80),
    st.integers(1, 3),
    st.integers(1, 30),
    st.sampled_from([1, 3, 1000]),
)
def test_the_first_of_equal_rows_is_found_however_many_passes_it_takes(
    numbers: list[int], width: int, block: int, rows_a_pass: int
) -> None:
    keys = hashed(numbers, width)

    def read() -> Iterator[Array]:
        yield from (keys[start : start + block] for start in range(0, len(keys), block))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "_ROWS_A_PASS", rows_a_pass)
        pairs = list(dedup.equal_to_earlier(read, len(keys)))
        repeats = dedup.repeats(read, len(keys))
    found = {int(r): int(f) for rows, firsts in pairs for r, f in zip(rows, firsts, strict=True)}
    expected = naive([tuple(key) for key in keys.tolist()])
    assert found == expected
    assert np.flatnonzero(repeats).tolist() == sorted(expected)
