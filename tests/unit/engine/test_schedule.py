import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.engine.schedule import learning_rate_factor


@given(
    st.integers(0, 2_000_000),
    st.integers(1, 1_750_000),
    st.integers(0, 20_000),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_the_factor_is_the_product_of_decay_and_warmup(
    step: int, num_steps: int, warmup_steps: int, power: float
) -> None:
    decay = max(0.0, 1.0 - step / num_steps) ** power
    warmup = step / warmup_steps if step < warmup_steps else 1.0
    found = learning_rate_factor(step, num_steps, warmup_steps, power)
    assert found == pytest.approx(decay * warmup, abs=1e-12)
    assert 0.0 <= found <= 1.0


def test_the_rate_rises_from_zero_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 1000, 100) for step in range(1001)]
    assert factors[0] == factors[1000] == 0.0
    assert all(factors[i] < factors[i + 1] for i in range(100))
    assert all(factors[i] > factors[i + 1] for i in range(100, 1000))
    assert max(factors) == factors[100] == pytest.approx(0.9)
    assert learning_rate_factor(5000, 1000, 100) == 0.0


def test_without_warmup_the_first_rate_is_the_peak() -> None:
    assert learning_rate_factor(0, 1000, 0) == 1.0


def test_the_power_bends_the_decay_only() -> None:
    assert learning_rate_factor(50, 100, 100, power=2.0) == pytest.approx(0.25 * 0.5)
