from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.data.shared_rows import share_rows
from electra_dist.data.stream import MicroBatch

LENGTH, SLOTS = 24, 5
ROWS = st.lists(st.tuples(st.integers(3, LENGTH), st.integers(1, SLOTS)), min_size=1, max_size=20)
"""Tokens and used slots of each row."""


def rows_of(sizes: list[tuple[int, int]]) -> MicroBatch:
    """Rows whose every token and slot is another number, so that none can be taken for another."""
    num_rows = len(sizes)
    num_tokens_B, num_used_B = np.array(sizes).T
    ids_BL = 1 + np.arange(num_rows * LENGTH, dtype=np.uint16).reshape(num_rows, LENGTH)
    real_BL = np.arange(LENGTH) < num_tokens_B[:, None]
    used_BN = np.arange(SLOTS) < num_used_B[:, None]
    rng = np.random.default_rng(0)
    positions_BN = rng.integers(0, num_tokens_B[:, None], (num_rows, SLOTS)).astype(np.uint16)
    return MicroBatch(
        step=3,
        index=4,
        is_real=True,
        input_ids_BL=ids_BL * real_BL,
        masked_ids_BL=(ids_BL + 5000) * real_BL,
        token_type_ids_BL=(ids_BL % 2 * real_BL).astype(np.uint8),
        num_tokens_B=num_tokens_B,
        masked_positions_BN=positions_BN * used_BN,
        masked_weights_BN=used_BN.astype(np.float32),
    )


def noise_of(rows: MicroBatch) -> np.ndarray:
    return np.arange(rows.masked_weights_BN.size, dtype=np.float32).reshape(-1, SLOTS) + 0.5


def documents(rows: MicroBatch, noise_BN: np.ndarray) -> list[tuple[object, ...]]:
    """What each row or block says, wherever it stands: all that a loss is made of."""
    found = []
    for row, num_tokens in enumerate(rows.num_tokens_B):
        blocks = np.ones(num_tokens, np.int16)
        if rows.block_ids_BL is not None:
            assert not rows.block_ids_BL[row, num_tokens:].any()
            blocks = rows.block_ids_BL[row, :num_tokens]
        assert (np.diff(blocks) >= 0).all()
        assert set(blocks) == set(range(1, blocks[-1] + 1))
        used_N = rows.masked_weights_BN[row] > 0
        positions = rows.masked_positions_BN[row, used_N].astype(int)
        for block in range(1, blocks[-1] + 1):
            places = np.flatnonzero(blocks == block)
            mine = blocks[positions] == block
            if rows.position_ids_BL is not None:
                assert rows.position_ids_BL[row, places].tolist() == list(range(len(places)))
            found.append(
                (
                    rows.input_ids_BL[row, places].tolist(),
                    rows.masked_ids_BL[row, places].tolist(),
                    rows.token_type_ids_BL[row, places].tolist(),
                    (positions[mine] - places[0]).tolist(),
                    noise_BN[row, used_N][mine].tolist(),
                )
            )
    return sorted(found, key=str)


@given(ROWS)
def test_rows_that_share_one_say_what_they_said_alone(sizes: list[tuple[int, int]]) -> None:
    rows = rows_of(sizes)
    noise_BN = noise_of(rows)
    shared, shared_noise_BN = share_rows(rows, noise_BN, LENGTH, least_saved=0.0)
    assert documents(shared, shared_noise_BN) == documents(rows, noise_BN)
    assert shared.num_tokens_B.max() <= LENGTH
    assert shared.num_tokens_B.sum() == rows.num_tokens_B.sum()
    assert shared.masked_weights_BN.sum() == rows.masked_weights_BN.sum()
    unused_BN = shared.masked_weights_BN == 0
    assert not shared.masked_positions_BN[unused_BN].any()
    assert (shared.step, shared.index, shared.is_real) == (3, 4, True)
    for name in ("input_ids_BL", "token_type_ids_BL", "masked_positions_BN", "num_tokens_B"):
        assert getattr(shared, name).dtype == getattr(rows, name).dtype


@given(ROWS)
def test_no_two_rows_are_left_that_would_fit_in_one(sizes: list[tuple[int, int]]) -> None:
    rows = rows_of(sizes)
    shared, _ = share_rows(rows, noise_of(rows), LENGTH, least_saved=0.0)
    tokens, used = shared.num_tokens_B, shared.masked_weights_BN.sum(axis=1)
    for one in range(len(tokens)):
        for other in range(one):
            assert tokens[one] + tokens[other] > LENGTH or used[one] + used[other] > SLOTS


def test_rows_stay_as_they_are_where_too_few_are_saved_or_they_are_packed_already() -> None:
    rows = rows_of([(LENGTH, 4)] * 9 + [(10, 2), (12, 2)])  # ten rows of eleven
    noise_BN = noise_of(rows)
    assert len(share_rows(rows, noise_BN, LENGTH, least_saved=1 / 11)[0].num_tokens_B) == 10
    assert share_rows(rows, noise_BN, LENGTH, least_saved=0.1)[0] is rows
    packed = replace(rows, block_ids_BL=np.ones((11, LENGTH), np.int16))
    kept, kept_noise_BN = share_rows(packed, noise_BN, LENGTH, least_saved=0.0)
    assert kept is packed
    assert kept_noise_BN is noise_BN
