import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.resilience.replicas import (
    OpenCase,
    odd_ranks,
    open_case,
    tensor_hash,
    wrong_ranks,
)


@pytest.mark.parametrize(
    ("hashes", "odd"),
    [
        ("aab", (2,)),
        ("baa", (0,)),
        ("abaca", (1, 3)),
        ("ab", ()),
        ("abc", ()),
        ("aabb", ()),
        ("aaaa", ()),
    ],
)
def test_the_odd_one_out_is_named_by_more_than_half(hashes: str, odd: tuple[int, ...]) -> None:
    assert odd_ranks(hashes) == odd


def a_case(*values: float) -> OpenCase:
    return OpenCase(step=20, tensor="bias/master", index=7, values=values)


def test_a_replay_says_who_of_two_was_wrong() -> None:
    assert wrong_ranks(a_case(0.5, 0.75), 0.5) == (1,)
    # Both have moved since, alike: the nearer one was damaged by the other's gradients only.
    assert wrong_ranks(a_case(0.501, 0.751), 0.5) == (1,)
    assert wrong_ranks(a_case(math.nan, 0.75), 0.5) == (0,)
    assert wrong_ranks(a_case(0.25, math.inf), 0.5) == (1,)
    assert wrong_ranks(a_case(0.25, 0.75), 0.5) == ()


def corruption(**changes: Any) -> dict[str, Any]:
    plain = {"event": "corruption", "step": 20, "ranks": [], "tensors": ["bias/master"]}
    values = {"index": 7, "values": [0.5, 0.75]}
    return {**plain, **values, "world_size": 2, "engine": "reference fp32", **changes}


def test_a_case_is_open_until_the_same_engine_makes_its_step_again() -> None:
    def found(*events: dict[str, Any], step: int = 10, world_size: int = 2) -> OpenCase | None:
        return open_case(events, step, world_size=world_size, engine="reference fp32")

    other = {"event": "save", "step": 10}
    assert found() is None
    assert found(other, corruption(), other) == a_case(0.5, 0.75)
    assert found(corruption(values=["inf", 0.75])) == a_case(math.inf, 0.75)
    assert found(corruption(), step=20) is None
    assert found(corruption(), world_size=3) is None
    assert found(corruption(engine="DeepSpeed ZeRO-0 fp32")) is None
    assert found(corruption(ranks=[1])) is None
    assert found(corruption(), {"event": "corruption_resolved"}) is None
    assert found({"event": "corruption_resolved"}, corruption()) == a_case(0.5, 0.75)


@given(
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 20),
    st.integers(0, 15),
    st.sampled_from([(21,), (3, 7), ()]),
)
def test_any_flipped_bit_changes_the_hash(
    dtype: torch.dtype, element: int, bit: int, shape: tuple[int, ...]
) -> None:
    tensor = torch.arange(21 if shape else 1).reshape(shape).to(dtype)
    before = tensor_hash(tensor)
    assert tensor_hash(tensor.clone()) == before
    bits = tensor.view(-1).view(torch.int16)
    bits[element % len(bits)] ^= 1 << bit if bit < 15 else -(1 << 15)
    assert tensor_hash(tensor) != before
