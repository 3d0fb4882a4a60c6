"""The paths that only a CUDA device takes: fused dropout and attention, bf16, ragged batches."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from electra_dist.config.schema import EngineConfig, RunConfig
from electra_dist.model import ops, random
from electra_dist.model.batch import Batch, Losses
from electra_dist.model.electra import JointElectra

pytestmark = [pytest.mark.gpu, pytest.mark.needs_gpu]

# As a run with `engine.deterministic`; cuBLAS reads it once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

CUDA = torch.device("cuda")
MakeBatch = Callable[..., Batch]
Scrambled = Callable[..., JointElectra]


def trained(model: JointElectra, batch: Batch, seed: int = 0) -> tuple[Losses, list[Tensor]]:
    """Losses and gradients of a pass in training, its noise keyed by `seed`."""
    random.seed_dropout(seed, 0, 0)
    model.train().zero_grad()
    losses = model(batch)
    losses.total.backward()
    return losses, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("backbone", ["bert", "modern"])
def test_losses_and_logits_are_those_of_the_cpu(
    backbone: Literal["bert", "modern"],
    calm: RunConfig,
    make_batch: MakeBatch,
    scrambled: Scrambled,
) -> None:
    changed = replace(calm.model, backbone=backbone, local_attention_window=6)
    calm = replace(calm, model=changed)
    model, batch = scrambled(calm), make_batch(calm, [24, 9])
    assert batch.attention_mask_BL is not None
    batch = batch._replace(places_T=batch.attention_mask_BL.flatten().nonzero().squeeze(1))
    wanted = model(batch)
    batch = batch._replace(sampled_ids_BN=wanted.sampled_ids_BN)
    found = model.to(CUDA)(batch.to(CUDA))
    assert found.total.item() == pytest.approx(wanted.total.item(), rel=1e-4)
    torch.testing.assert_close(
        found.discriminator_logits_BL.cpu(), wanted.discriminator_logits_BL, rtol=0, atol=1e-3
    )


def test_masks_of_lanes_are_those_of_the_cpu() -> None:
    keys, shape = random.site_keys(1, torch.device("cpu")), (3, 5000)
    here = random.keep_mask(random.site_words(keys, shape)[0], shape, 0.1, torch.ones(1))
    words = random.site_words(keys.to(CUDA), shape)[0]
    there = random.keep_mask(words, shape, 0.1, torch.ones(1, device=CUDA))
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("lengths", [[512, 512], [512, 300]])
def test_a_pass_is_repeated_bit_by_bit_from_its_key_with_and_without_recomputation(
    lengths: list[int], config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    # Rows of several blocks of keys, whose gradients attention's kernels add up in any order where
    # nobody asks for one.
    config = replace(
        config,
        data=replace(config.data, sequence_length=512),
        model=replace(config.model, max_position_embeddings=512),
    )
    torch.use_deterministic_algorithms(True)
    try:
        batch = make_batch(config, lengths).to(CUDA)
        _, wanted = trained(scrambled(config).to(CUDA), batch)
        frugal = replace(config, engine=EngineConfig(activation_checkpointing=True))
        for model in (scrambled(config).to(CUDA), scrambled(frugal).to(CUDA)):
            _, found = trained(model, batch)
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        _, other = trained(scrambled(config).to(CUDA), batch, seed=1)
        assert not all(torch.equal(a, b) for a, b in zip(other, wanted, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


def test_bf16_rows_without_padding_run_flash_attention_with_dropout() -> None:
    qkv = torch.randn(2, 128, 3, 4, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    noise = ops.noise(random.site_keys(1, CUDA), (2, 4, 128, 128))[0]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where that kernel cannot serve
        ops.attention(qkv, None, 0.1, noise).float().square().sum().backward()
    assert qkv.grad is not None
    assert qkv.grad.isfinite().all()


def test_packed_rows_run_the_memory_efficient_kernel_with_their_mask() -> None:
    qkv = torch.randn(2, 128, 3, 4, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    blocks = torch.arange(128, device=CUDA).expand(2, -1) // 32
    mask = (blocks[:, :, None] == blocks[:, None, :]).unsqueeze(1)
    noise = ops.noise(random.site_keys(1, CUDA), (2, 4, 128, 128))[0]
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        bias = ops.attention_bias(mask, qkv)
        ops.attention(qkv, bias, 0.1, noise).float().sum().backward()
    assert qkv.grad is not None
    assert qkv.grad.isfinite().all()


def test_a_bf16_module_trains_with_losses_in_float32(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    batch = make_batch(config, [24, 24]).to(CUDA)
    losses, gradients = trained(scrambled(config).to(CUDA, torch.bfloat16), batch)
    assert losses.generator.dtype == losses.discriminator.dtype == torch.float32
    assert losses.total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
