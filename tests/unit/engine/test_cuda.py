"""Optimizers and half precision on a CUDA device."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from electra_dist.config.schema import RunConfig
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.optim import OPTIMIZERS, decay_groups
from electra_dist.engine.protocol import StepOptions
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.world import World

pytestmark = [pytest.mark.gpu, pytest.mark.needs_gpu]

CUDA = torch.device("cuda")
WORLD = World.from_environment({})


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_updates_are_those_of_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    here = nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30), nn.Linear(30, 7))
    there = nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30), nn.Linear(30, 7)).to(CUDA)
    there.load_state_dict(here.state_dict())
    optimizers = [OPTIMIZERS[name](decay_groups(m, 0.1), lr=0.01) for m in (here, there)]
    for number in range(4):
        for optimizer in optimizers:
            optimizer.gradient_divisor = 1.0 + number
        for mine, theirs in zip(here.parameters(), there.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            theirs.grad = mine.grad.to(CUDA)
        for optimizer in optimizers:
            optimizer.num_updates = number
            optimizer.step()
    for mine, theirs in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(theirs.cpu(), mine, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_an_overflow_changes_nothing(
    precision: str, config: RunConfig, make_micro_batch: Callable[..., MicroBatch]
) -> None:
    engine = replace(config.engine, precision=precision)  # type: ignore[arg-type]
    config = replace(config, engine=engine)
    made = ReferenceEngine(JointElectra(config), config, WORLD, CUDA)
    passes = [make_micro_batch(config, index, is_padded=index == 3) for index in range(4)]
    losses = []
    for _ in range(5):
        result = made.step(passes, 1e-3, options=StepOptions(loss_scale=1024.0))
        losses.append(result.sums["loss"])
    assert losses[-1] < losses[0]
    if precision == "fp16":
        before = [f.values.clone() for f in made.local_fragments()]
        result = made.step(passes, 1e-3, options=StepOptions(loss_scale=2.0**32))
        assert result.grad_norm != result.grad_norm
        for fragment, old in zip(made.local_fragments(), before, strict=True):
            assert torch.equal(fragment.values, old)
