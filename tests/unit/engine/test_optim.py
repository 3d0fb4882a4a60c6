import math

import numpy as np
import pytest
import torch
from torch import nn

from electra_dist.engine.optim import MOMENTS, ElectraAdam, clip_gradients, decay_groups


class Network(nn.Module):
    """One parameter of every kind that decay treats in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(7, 3)
        self.dense = nn.Linear(3, 4)
        self.layer_norm = nn.LayerNorm(4)


DECAYED = {"word.weight", "dense.weight"}


def naive_steps(
    weights: list[float],
    gradients: list[list[float]],
    rates: list[float],
    decay: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> list[float]:
    """A loop over numbers, in float64."""
    result = []
    for index, start in enumerate(weights):
        weight, first, second = start, 0.0, 0.0
        for gradient, rate in zip(gradients, rates, strict=True):
            first = beta1 * first + (1 - beta1) * gradient[index]
            second = beta2 * second + (1 - beta2) * gradient[index] ** 2
            weight -= rate * (first / (math.sqrt(second) + eps) + decay * weight)
        result.append(weight)
    return result


@pytest.mark.parametrize(
    ("beta1", "beta2", "eps", "decay"), [(0.9, 0.999, 1e-6, 0.01), (0.5, 0.98, 1e-3, 0.2)]
)
def test_many_steps_are_those_of_a_float64_loop(
    beta1: float, beta2: float, eps: float, decay: float
) -> None:
    model = Network()
    rng = np.random.default_rng(0)
    start = {}
    for name, parameter in model.named_parameters():
        parameter.data = torch.from_numpy(rng.normal(size=parameter.shape)).float()
        start[name] = parameter.detach().double().flatten().tolist()
    optimizer = ElectraAdam(decay_groups(model, decay), lr=0.0, betas=(beta1, beta2), eps=eps)
    rates = [0.0, 0.02, 0.05, 0.01, 0.03, 0.001]
    gradients: dict[str, list[list[float]]] = {name: [] for name in start}
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in model.named_parameters():
            scale = 10.0 ** rng.integers(-6, 1)
            parameter.grad = torch.from_numpy(scale * rng.normal(size=parameter.shape)).float()
            gradients[name].append(parameter.grad.double().flatten().tolist())
        optimizer.step()
    for name, parameter in model.named_parameters():
        own = decay if name in DECAYED else 0.0
        wanted = naive_steps(start[name], gradients[name], rates, own, beta1, beta2, eps)
        assert parameter.flatten().tolist() == pytest.approx(wanted, rel=2e-5, abs=2e-6), name


def test_groups_hold_every_parameter_once() -> None:
    model = Network()
    groups = decay_groups(model, 0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [[names[id(p)] for p in group["params"]] for group in groups]
    assert sorted(found[0] + found[1]) == sorted(names.values())
    assert set(found[0]) == DECAYED
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


def test_the_state_is_two_moments_and_no_step_counter() -> None:
    parameter = nn.Parameter(torch.ones(2, 3))
    optimizer = ElectraAdam([parameter], lr=0.1)
    parameter.grad = torch.ones(2, 3)
    optimizer.step()
    assert set(optimizer.state[parameter]) == set(MOMENTS)
    for name, value in (("exp_avg", 0.1), ("exp_avg_sq", 0.001)):
        moment = optimizer.moments(parameter)[name]
        torch.testing.assert_close(moment, torch.full((2, 3), value))


def test_moments_of_a_parameter_that_was_never_stepped_are_zeros_that_it_goes_on_from() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = ElectraAdam([parameter], lr=0.1, weight_decay=0.0)
    moments = optimizer.moments(parameter)
    assert not any(moment.any() for moment in moments.values())
    # What a restore writes into them is what the next step reads.
    moments["exp_avg"].fill_(2.0)
    moments["exp_avg_sq"].fill_(4.0)
    parameter.grad = torch.zeros(3)
    optimizer.step()
    wanted = 1.0 - 0.1 * (0.9 * 2.0) / (math.sqrt(0.999 * 4.0) + 1e-6)
    torch.testing.assert_close(parameter.detach(), torch.full((3,), wanted))


def test_a_parameter_without_gradient_neither_moves_nor_decays() -> None:
    moved, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = ElectraAdam([moved, still], lr=0.1, weight_decay=0.5)
    moved.grad = torch.ones(2)
    optimizer.step()
    assert still.tolist() == [1.0, 1.0]
    assert moved.tolist() != [1.0, 1.0]


def test_a_vetoed_step_changes_neither_weights_nor_moments() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = ElectraAdam([parameter], lr=0.1)
    parameter.grad = torch.tensor([1.0, math.nan])
    optimizer.may_apply = lambda: False
    optimizer.step()
    assert parameter.tolist() == [1.0, 1.0]
    assert not any(moment.any() for moment in optimizer.moments(parameter).values())
    optimizer.may_apply = lambda: True
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert parameter.isfinite().all()
    assert (parameter < 1.0).all()


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="closure"):
        ElectraAdam([nn.Parameter(torch.ones(1))], lr=0.1).step(lambda: 0.0)


def gradients_of(model: nn.Module) -> list[float]:
    return [x for p in model.parameters() if p.grad is not None for x in p.grad.flatten().tolist()]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_gradients_longer_than_the_limit_are_scaled_to_it_together(scale: float) -> None:
    model = Network()
    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=noise)
    model.layer_norm.bias.grad = None  # a parameter that took no part
    before = gradients_of(model)
    norm = math.sqrt(sum(x * x for x in before))
    assert clip_gradients(model, 0.5) == pytest.approx(norm, rel=1e-7)
    factor = min(1.0, 0.5 / norm)
    assert gradients_of(model) == pytest.approx([factor * x for x in before], rel=1e-5)
    if norm < 0.5:
        assert gradients_of(model) == before


def test_the_norm_of_a_gradient_that_is_not_finite_is_not_finite() -> None:
    model = Network()
    for poison in (math.nan, math.inf):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        model.dense.weight.grad[0, 0] = poison
        assert not math.isfinite(clip_gradients(model, 1.0))
