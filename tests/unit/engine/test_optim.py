import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from electra_dist.engine.optim import MOMENTS, OPTIMIZERS, AdamW, ElectraAdam, Lamb, decay_groups
from electra_dist.engine.parts import Part, Parts


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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_are_divided_on_their_way_into_an_update(name: str) -> None:
    torch.manual_seed(0)
    divided, plain = Network(), Network()
    plain.load_state_dict(divided.state_dict())
    optimizers = [OPTIMIZERS[name](decay_groups(model, 0.01), lr=0.1) for model in (divided, plain)]
    optimizers[0].gradient_divisor = 4.0  # a power of two: no rounding
    for step in range(3):
        for parameter, other in zip(divided.parameters(), plain.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape)
            other.grad = parameter.grad / 4.0
        for optimizer in optimizers:
            optimizer.num_updates = step
            optimizer.step()
    for parameter, other in zip(divided.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter, other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_divisor_beyond_float32_leaves_nothing_of_the_gradients(name: str) -> None:
    model = Network()
    optimizer = OPTIMIZERS[name](decay_groups(model, 0.0), lr=0.1)
    optimizer.gradient_divisor = 6e38
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3e38)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


Gradients = dict[str, list[Tensor]]


def random_gradients(model: nn.Module, num_steps: int, seed: int) -> Gradients:
    """float64, of very different sizes from step to step."""
    noise = torch.Generator().manual_seed(seed)
    return {
        name: [
            10.0 ** -float(torch.randint(0, 5, (), generator=noise))
            * torch.randn(p.shape, generator=noise, dtype=torch.float64)
            for _ in range(num_steps)
        ]
        for name, p in model.named_parameters()
    }


def lamb_in_float64(
    start: dict[str, Tensor], gradients: Gradients, rates: list[float], decay: float
) -> dict[str, Tensor]:
    """You et al. 2020, algorithm 2, parameter by parameter."""
    result = {}
    for name, first_weight in start.items():
        weight, first, second = first_weight.double(), 0.0, 0.0
        for count, (gradient, rate) in enumerate(zip(gradients[name], rates, strict=True), 1):
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            corrected = first / (1 - 0.9**count), second / (1 - 0.999**count)
            update = corrected[0] / (corrected[1].sqrt() + 1e-6)
            ratio = 1.0
            if name in DECAYED:
                update = update + decay * weight
                norms = float(weight.norm()), float(update.norm())
                ratio = norms[0] / norms[1] if min(norms) > 0 else 1.0
            weight = weight - rate * ratio * update
        result[name] = weight
    return result


def a_step(optimizer: ElectraAdam | AdamW, number: int, rate: float) -> None:
    optimizer.num_updates = number
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


RATES = [0.0, 0.02, 0.05, 0.01, 0.03]


def test_lamb_is_that_of_a_float64_loop() -> None:
    torch.manual_seed(0)
    model = Network()
    with torch.no_grad():
        model.dense.weight.zero_()  # a norm of 0: its ratio is 1 until it has moved
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = random_gradients(model, len(RATES), seed=1)
    optimizer = Lamb(decay_groups(model, 0.1), lr=0.0)
    for number, rate in enumerate(RATES):
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name][number].float()
        a_step(optimizer, number, rate)
    wanted = lamb_in_float64(start, gradients, RATES, 0.1)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), wanted[name], rtol=1e-5, atol=1e-6)


def cut(sizes: list[int], num_ranks: int, rank: int) -> list[Part]:
    """A rank's parts of parameters that lie in a row, cut in equal shares as ZeRO cuts them."""
    share = -(-sum(sizes) // num_ranks)
    low, high, at, parts = rank * share, (rank + 1) * share, 0, []
    for number, size in enumerate(sizes):
        first, last = max(at, low), min(at + size, high)
        if first < last:
            parts.append(Part(number, first - low, last - first))
        at += size
    return parts


def ranks_in_threads(num_ranks: int) -> list[Callable[[Tensor], Tensor]]:
    """An all-reduce for each of so many threads."""
    barrier = threading.Barrier(num_ranks, timeout=20)
    given_by: list[Tensor] = [torch.empty(0)] * num_ranks

    def all_reduce(rank: int, own: Tensor) -> Tensor:
        given_by[rank] = own
        barrier.wait()
        total = torch.stack(given_by).sum(0)
        barrier.wait()
        return total

    return [lambda own, rank=rank: all_reduce(rank, own) for rank in range(num_ranks)]


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    num_ranks=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_lamb_on_flat_shards_is_lamb_on_whole_parameters(
    sizes: list[int], num_ranks: int, seed: int
) -> None:
    """Parameters cut anywhere, several in a shard, one over all shards, a shard of padding only."""
    noise = torch.Generator().manual_seed(seed)
    whole = [nn.Parameter(torch.randn(size, generator=noise)) for size in sizes]
    share = -(-sum(sizes) // num_ranks)
    padded = torch.zeros(share * num_ranks)
    padded[: sum(sizes)] = torch.cat([p.detach() for p in whole])
    flats = [nn.Parameter(piece.clone()) for piece in padded.split(share)]
    reference = Lamb(whole, lr=0.0, weight_decay=0.1)
    sharded = []
    for rank, (flat, sum_over_ranks) in enumerate(
        zip(flats, ranks_in_threads(num_ranks), strict=True)
    ):
        optimizer = Lamb([flat], lr=0.0, weight_decay=0.1)
        optimizer.parts = Parts(
            names=[str(number) for number in range(len(sizes))],
            of={flat: cut(sizes, num_ranks, rank)},
            sum_over_ranks=sum_over_ranks,
        )
        sharded.append(optimizer)
    for number in range(3):
        gradient = torch.zeros_like(padded)
        gradient[: sum(sizes)] = torch.randn(sum(sizes), generator=noise)
        for parameter, own in zip(whole, gradient[: sum(sizes)].split(sizes), strict=True):
            parameter.grad = own.clone()
        for flat, own in zip(flats, gradient.split(share), strict=True):
            flat.grad = own.clone()
        a_step(reference, number, 0.1)
        threads = [
            threading.Thread(target=a_step, args=(optimizer, number, 0.1)) for optimizer in sharded
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = torch.cat([flat.detach() for flat in flats])
    wanted = torch.cat([p.detach() for p in whole])
    torch.testing.assert_close(found[: sum(sizes)], wanted, rtol=1e-6, atol=1e-6)
    assert not found[sum(sizes) :].any()


def test_adamw_is_torchs_and_an_update_left_out_does_not_count() -> None:
    torch.manual_seed(0)
    model, peer = Network(), Network()
    peer.load_state_dict(model.state_dict())
    optimizer = AdamW(decay_groups(model, 0.1), lr=0.0, betas=(0.9, 0.98), eps=1e-6)
    groups = [{k: g[k] for k in ("params", "weight_decay")} for g in decay_groups(peer, 0.1)]
    theirs = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6)
    gradients = random_gradients(model, len(RATES), seed=2)
    num_updates = 0
    for number, rate in enumerate(RATES):
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name][number].float()
            peer.get_parameter(name).grad = parameter.grad.clone()
        is_left_out = number == 2
        optimizer.may_apply = lambda is_left_out=is_left_out: not is_left_out
        a_step(optimizer, num_updates, rate)
        if not is_left_out:
            num_updates += 1
            for group in theirs.param_groups:
                group["lr"] = rate
            theirs.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, peer.get_parameter(name), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_moments_and_a_count_are_all_that_an_optimizer_goes_on_from(name: str) -> None:
    """Bit for bit: what is restored into fresh moments continues as if nothing had happened."""
    torch.manual_seed(0)
    model, later = Network(), Network()
    gradients = random_gradients(model, len(RATES), seed=3)
    calm, resumed = (OPTIMIZERS[name](decay_groups(m, 0.1), lr=0.0) for m in (model, later))

    def steps(m: nn.Module, optimizer: ElectraAdam | AdamW, numbers: range) -> None:
        for number in numbers:
            for parameter_name, parameter in m.named_parameters():
                parameter.grad = gradients[parameter_name][number].float()
            a_step(optimizer, number, RATES[number])

    steps(model, calm, range(3))
    later.load_state_dict(model.state_dict())
    for mine, theirs in zip(model.parameters(), later.parameters(), strict=True):
        for kind in MOMENTS:
            resumed.moments(theirs)[kind].copy_(calm.moments(mine)[kind])
    steps(model, calm, range(3, 5))
    steps(later, resumed, range(3, 5))
    for mine, theirs in zip(model.parameters(), later.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert set(calm.state[mine]) == set(MOMENTS)


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
    with pytest.raises(ValueError, match="ElectraAdam takes no closure"):
        ElectraAdam([nn.Parameter(torch.ones(1))], lr=0.1).step(lambda: 0.0)
