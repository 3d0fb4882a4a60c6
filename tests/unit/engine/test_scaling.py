import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.engine.scaling import LARGEST, LEAST, LossScale


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 7), st.integers(0, 12))
def test_the_scale_is_that_of_torchs_grad_scaler(
    verdicts: list[bool], window: int, power: int
) -> None:
    """Step by step; torch's goes below 1, ours leaves that to the health policy."""
    scale = LossScale(scale=2.0**power)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**power, growth_interval=window)
    for overflowed in verdicts:
        theirs.scale(parameter.sum()).backward()
        parameter.grad.fill_(math.inf if overflowed else 1.0)
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        scale = scale.after(overflowed=overflowed, window_steps=window)
        if theirs.get_scale() < LEAST:
            break
        assert scale.scale == theirs.get_scale()


def test_the_scale_stays_within_its_limits_and_survives_json() -> None:
    scale = LossScale(scale=2.0)
    for _ in range(5):
        scale = scale.after(overflowed=True, window_steps=1)
    assert scale == LossScale(scale=LEAST)
    assert not scale.can_be_lowered
    for _ in range(50):
        scale = scale.after(overflowed=False, window_steps=1)
    assert scale.scale == LARGEST
    scale = LossScale(scale=4.0).after(overflowed=False, window_steps=9)
    assert LossScale.from_json(scale.to_json()) == scale == LossScale(scale=4.0, good_steps=1)
