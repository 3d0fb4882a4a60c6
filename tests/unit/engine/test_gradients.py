import math

import pytest
import torch
from torch import nn

from electra_dist.engine.gradients import TowerNorms, clip_divisor, gradient_norm, tower_of
from electra_dist.engine.parts import Part, Parts


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(7, 3)
        self.dense = nn.Linear(3, 4)
        self.layer_norm = nn.LayerNorm(4)


def gradients_of(model: nn.Module) -> list[torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    return [torch.randn(p.shape, generator=noise) for p in model.parameters()]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_gradients_longer_than_the_limit_are_divided_down_to_it_together(scale: float) -> None:
    gradients = [scale * g for g in gradients_of(Network())]
    norm = gradient_norm(gradients)
    assert norm == pytest.approx(math.sqrt(sum(float((g * g).sum()) for g in gradients)), rel=1e-7)
    clipped = [g / clip_divisor(norm, 0.5) for g in gradients]
    assert gradient_norm(clipped) == pytest.approx(min(norm, 0.5), rel=1e-5)
    if norm <= 0.5:
        assert clip_divisor(norm, 0.5) == 1.0


@pytest.mark.parametrize("sizes", [(1,), (1023, 1), (1024,), (0, 5), (3000, 7, 1024, 500, 900)])
def test_the_norm_is_that_of_all_numbers_in_one_row(sizes: tuple[int, ...]) -> None:
    noise = torch.Generator().manual_seed(1)
    gradients = [torch.randn(size, generator=noise) for size in sizes]
    expected = torch.linalg.vector_norm(torch.cat(gradients), dtype=torch.float64)
    assert gradient_norm(gradients) == pytest.approx(float(expected), rel=1e-7)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_the_norm_of_a_gradient_that_is_not_finite_is_not_finite(poison: float) -> None:
    gradients = gradients_of(Network())
    gradients[1][0, 0] = poison
    norm = gradient_norm(gradients)
    assert not math.isfinite(norm)
    assert clip_divisor(norm, 1.0) != 0.0


def test_towers_go_by_the_first_part_of_a_name() -> None:
    assert tower_of("embeddings.word.weight") == "shared"
    assert tower_of("generator.head.bias") == "generator"
    assert tower_of("discriminator.encoder.layers.0.ffn_in.weight") == "discriminator"


def test_squared_norms_of_towers_are_those_of_the_unclipped_gradient() -> None:
    """A flat tensor with two parameters and padding, and one that is only a copy of another's."""
    flat = nn.Parameter(torch.zeros(8))
    flat.grad = torch.tensor([3.0, 4.0, 1.0, 2.0, 2.0, 9.0, 9.0, 9.0])
    parts = Parts(
        names=["embeddings.word.weight", "generator.a", "discriminator.b"],
        of={flat: [Part(0, 0, 2), Part(2, 2, 3)]},
    )
    padding = nn.Parameter(torch.zeros(3))
    padding.grad = torch.ones(3)
    norms = TowerNorms(parts, counts=True)
    norms.add([flat, padding])
    found = norms.take()
    assert found == pytest.approx({"shared": 25.0, "generator": 0.0, "discriminator": 9.0})
    assert set(norms.take().values()) == {0.0}
    copy = TowerNorms(parts, counts=False)
    copy.add([flat])
    assert set(copy.take().values()) == {0.0}
