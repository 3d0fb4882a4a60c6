"""Each hand-made gradient against autograd's own of the plain formula, in float64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_dist.model import ops, random

P = 0.25


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def site_key() -> Tensor:
    random.seed_dropout(7, 0, 0)
    return random.site_keys(1, torch.device("cpu"))[0]


def words(shape: tuple[int, ...]) -> Tensor:
    return ops.noise(site_key()[None], shape)[0]


def scaled_mask(shape: tuple[int, ...]) -> Tensor:
    mask = random.keep_mask(words(shape), shape, P, torch.ones(1, dtype=torch.float64))
    return mask / (1 - P)  # 0.25 is a whole number of lanes


def assert_same(
    found: Callable[..., Tensor], wanted: Callable[..., Tensor], *inputs: Tensor
) -> None:
    """Values and gradients, the gradient of the output being noise too."""
    outputs = [function(*inputs) for function in (found, wanted)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
    upstream = noise(*outputs[0].shape, seed=9).detach()
    first, second = (torch.autograd.grad(output, inputs, upstream) for output in outputs)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def naive_attention(qkv_BL3HA: Tensor, mask_B1QL: Tensor | None) -> Tensor:
    query, key, value = qkv_BL3HA.permute(2, 0, 3, 1, 4)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if mask_B1QL is not None:
        scores = scores.masked_fill(~mask_B1QL, float("-inf"))
    weights = scores.softmax(-1) * scaled_mask(tuple(scores.shape))
    return (weights @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("masked", ["nothing", "padding", "blocks"])
def test_dropped_attention_is_softmax_mask_and_product(masked: str) -> None:
    blocks_BL = torch.tensor([[1, 1, 1, 2, 2], [1, 2, 2, 2, 0], [1, 1, 1, 1, 1]])
    mask = {
        "nothing": None,
        "padding": (blocks_BL > 0)[:, None, None, :],
        "blocks": (blocks_BL[:, :, None] == blocks_BL[:, None, :]).unsqueeze(1),
    }[masked]
    assert_same(
        lambda qkv: ops.attention(qkv, ops.attention_bias(mask, qkv), P, words((3, 2, 5, 5))),
        lambda qkv: naive_attention(qkv, mask),
        noise(3, 5, 3, 2, 4),
    )


def test_attention_without_dropout_is_that_of_torch() -> None:
    qkv = noise(2, 5, 3, 2, 4)
    without_noise = ops.attention(qkv, None, P, None)
    torch.testing.assert_close(without_noise, ops.attention(qkv, None, 0.0, words((2, 2, 5, 5))))
    wanted = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
    torch.testing.assert_close(without_noise, wanted.transpose(1, 2).flatten(2))


def test_dropout_and_its_sum_are_products_with_the_scaled_mask() -> None:
    mask = scaled_mask((6, 5))
    assert 0 < (mask == 0).sum() < 30
    assert_same(lambda x: ops.dropout(x, P, site_key()), lambda x: x * mask, noise(6, 5))
    assert_same(
        lambda x, y: ops.add_dropped(x, y, P, words((6, 5))),
        lambda x, y: x + y * mask,
        noise(6, 5),
        noise(6, 5, seed=1),
    )
    x, y = noise(6, 5), noise(6, 5, seed=1)
    assert torch.equal(ops.dropout(x, P, None), x)
    assert torch.equal(ops.add_dropped(x, y, P, None), x + y)


def test_cross_entropy_is_that_of_torch_with_the_probabilities_it_used() -> None:
    logits, ids = noise(3, 4, 11), torch.arange(12).view(3, 4) % 11
    assert_same(
        lambda values: ops.cross_entropy(values, ids)[0],
        lambda values: F.cross_entropy(values.mT, ids, reduction="none"),
        logits,
    )
    _, log_sums, probs = ops.cross_entropy(logits, ids)
    assert not log_sums.requires_grad
    assert not probs.requires_grad
    torch.testing.assert_close(log_sums, logits.logsumexp(-1, keepdim=True))
    torch.testing.assert_close(probs, logits.softmax(-1))


def test_cross_entropy_of_half_precision_logits_is_taken_in_float32() -> None:
    logits = noise(1, 2, 1000).detach().mul(20).bfloat16().requires_grad_()
    ids = torch.tensor([[3, 999]])
    losses, log_sums, probs = ops.cross_entropy(logits, ids)
    assert losses.dtype == log_sums.dtype == probs.dtype == torch.float32
    wanted = F.cross_entropy(logits.double().mT, ids, reduction="none")
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-6, atol=1e-6)
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_cross_entropy_refuses_a_second_backward_pass() -> None:
    logits = noise(1, 2, 5)
    losses, _, _ = ops.cross_entropy(logits, torch.tensor([[0, 1]]))
    losses.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        losses.sum().backward()
