import math

import pytest
import torch
from torch import nn

from electra_dist.engine.gradients import TowerNorms, clip_gradients, tower_of
from electra_dist.engine.parts import Part, Parts


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(7, 3)
        self.dense = nn.Linear(3, 4)
        self.layer_norm = nn.LayerNorm(4)


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
    assert clip_gradients(model.parameters(), 0.5) == pytest.approx(norm, rel=1e-7)
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
        assert not math.isfinite(clip_gradients(model.parameters(), 1.0))


def test_towers_go_by_the_first_part_of_a_name() -> None:
    assert tower_of("embeddings.word.weight") == "shared"
    assert tower_of("generator.head.bias") == "generator"
    assert tower_of("discriminator.encoder.layers.0.ffn_in.weight") == "discriminator"


def test_squared_norms_of_towers_are_those_of_the_unclipped_gradient() -> None:
    """A flat tensor with two parameters and padding, and one that is only a copy of another's."""
    flat = nn.Parameter(torch.zeros(8))
    flat.grad = torch.tensor([3.0, 4.0, 1.0, 2.0, 2.0, 9.0, 9.0, 9.0]) / 10
    parts = Parts(
        names=["embeddings.word.weight", "generator.a", "discriminator.b"],
        of={flat: [Part(0, 0, 2), Part(2, 2, 3)]},
    )
    padding = nn.Parameter(torch.zeros(3))
    padding.grad = torch.ones(3)
    norms = TowerNorms(parts, counts=True)
    norms.add([flat, padding])
    found = norms.take(grad_norm=10.0, clip_norm=1.0)
    assert found == pytest.approx({"shared": 25.0, "generator": 0.0, "discriminator": 9.0})
    assert set(norms.take(10.0, 1.0).values()) == {0.0}
    copy = TowerNorms(parts, counts=False)
    copy.add([flat])
    assert set(copy.take(10.0, 1.0).values()) == {0.0}
