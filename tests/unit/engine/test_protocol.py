from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from electra_dist.config.schema import RunConfig
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.protocol import StepSums, even_range, to_batch
from electra_dist.model.batch import Batch, Losses
from electra_dist.model.electra import JointElectra
from electra_dist.model.objectives import OBJECTIVES

CPU = torch.device("cpu")
MakeMicroBatch = Callable[..., MicroBatch]


@given(st.integers(0, 5000), st.integers(1, 300))
def test_even_ranges_cover_every_element_once_and_in_order(
    num_elements: int, world_size: int
) -> None:
    covered: list[int] = []
    largest = -(-num_elements // world_size)
    for rank in range(world_size):
        start, stop = even_range(num_elements, rank, world_size)
        assert 0 <= stop - start <= largest
        covered += range(start, stop)
    assert covered == list(range(num_elements))


def test_even_ranges_are_equal_pieces_with_a_shorter_end_as_zero_3_cuts_them() -> None:
    assert [even_range(10, rank, 4) for rank in range(4)] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert [even_range(5, rank, 4) for rank in range(4)] == [(0, 2), (2, 4), (4, 5), (5, 5)]
    assert [even_range(1, rank, 3) for rank in range(3)] == [(0, 1), (1, 1), (1, 1)]


def losses(*values: float) -> Losses:
    total, generator, discriminator, share = (torch.tensor(v) for v in values)
    nothing: Tensor = torch.empty(0)
    return Losses(
        total=total.requires_grad_(),
        generator=generator,
        discriminator=discriminator,
        replaced_share=share,
        generator_logits_BNV=nothing,
        sampled_ids_BN=nothing,
    )


def test_step_sums_add_up_real_passes_only(
    config: RunConfig, make_micro_batch: MakeMicroBatch
) -> None:
    real = [make_micro_batch(config, index, is_padded=True) for index in range(3)]
    repeated = make_micro_batch(config, 2, is_padded=True, is_real=False)
    sums = StepSums()
    for number, micro_batch in enumerate(real):
        sums.add(micro_batch, losses(45.0 + number, 10.0, 0.7, 0.25 * number))
    sums.add(repeated, losses(1e9, 1e9, 1e9, 1e9))
    result = sums.result(2.5)
    assert result.sums == pytest.approx(
        {
            "loss": 138.0,
            "generator_loss": 30.0,
            "discriminator_loss": 2.1,
            "replaced_share": 0.75,
            "tokens": float(sum(int(m.num_tokens_B.sum()) for m in real)),
        }
    )
    assert result.checksum == sum(m.checksum for m in real) % 2**64
    assert result.grad_norm == 2.5


def test_step_sums_keep_small_losses_beside_large_ones(
    config: RunConfig, make_micro_batch: MakeMicroBatch
) -> None:
    micro_batch = make_micro_batch(config, is_padded=False)
    sums = StepSums()
    values = [2.0**24, 1.0, 1.0, 1.0]  # in float32 this sum stays at 2**24
    for value in values:
        sums.add(micro_batch, losses(value, value, value, value))
    assert sums.result(0.0).sums["loss"] == sum(values)


def test_a_batch_holds_the_micro_batch_and_a_mask_where_something_is_padded(
    config: RunConfig, make_micro_batch: MakeMicroBatch
) -> None:
    full = to_batch(make_micro_batch(config, is_padded=False), config.seed, CPU)
    assert full.attention_mask_BL is None
    micro_batch = make_micro_batch(config, is_padded=True)
    batch = to_batch(micro_batch, config.seed, CPU)
    assert batch.attention_mask_BL is not None
    for row, num_tokens in enumerate(micro_batch.num_tokens_B):
        mask = batch.attention_mask_BL[row].tolist()
        assert mask == [column < num_tokens for column in range(len(mask))]
    for found, wanted in (
        (batch.input_ids_BL, micro_batch.input_ids_BL),
        (batch.masked_ids_BL, micro_batch.masked_ids_BL),
        (batch.token_type_ids_BL, micro_batch.token_type_ids_BL),
        (batch.masked_positions_BN, micro_batch.masked_positions_BN),
        (batch.masked_weights_BN, micro_batch.masked_weights_BN),
    ):
        np.testing.assert_array_equal(found.numpy(), wanted)
    assert batch.sampled_ids_BN is None


def test_columns_and_slots_that_no_row_uses_are_cut_off(
    config: RunConfig, make_micro_batch: MakeMicroBatch
) -> None:
    whole = make_micro_batch(config, is_padded=False)
    weights = whole.masked_weights_BN.copy()
    weights[:, 1:] = 0
    short = replace(whole, num_tokens_B=np.array([7, 3]), masked_weights_BN=weights)
    batch = to_batch(short, config.seed, CPU)
    assert batch.input_ids_BL.shape == batch.token_type_ids_BL.shape == (2, 8)
    assert batch.masked_positions_BN.shape == batch.uniforms_BN.shape == (2, 1)
    # What is left is computed without its padding; noise stays that of the slot.
    assert batch.places_T is not None
    assert batch.places_T.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]
    full = to_batch(whole, config.seed, CPU)
    assert full.places_T is None
    assert torch.equal(batch.uniforms_BN, full.uniforms_BN[:, :1])


@pytest.mark.parametrize("mask_sampling", ["without_replacement", "google"])
@pytest.mark.parametrize(
    ("objective", "backbone"),
    [*((name, "bert") for name in sorted(OBJECTIVES)), ("electra", "modern"), ("mlm", "modern")],
)
def test_rows_that_share_one_have_the_losses_and_gradients_of_rows_with_padding(
    objective: str,
    backbone: Literal["bert", "modern"],
    mask_sampling: Literal["without_replacement", "google"],
    config: RunConfig,
    make_micro_batch: MakeMicroBatch,
) -> None:
    model_config = replace(config.model, generator_num_layers=2)
    if backbone == "modern":  # one layer of each tower is local, within rows as well
        reach = {"local_attention_window": 6, "global_attention_every": 2}
        model_config = replace(model_config, backbone="modern", **reach)
    config = replace(
        config,
        model=model_config,
        objective=replace(
            config.objective, name=objective, mask_prob=0.3, mask_sampling=mask_sampling
        ),
    )
    lengths = [16, 7, 16, 4, 9, 5]  # 9 + 7 and 5 + 4
    rows = make_micro_batch(config, is_padded=True, lengths=lengths)
    comes_twice = [
        len(set(places[used])) < used.sum()
        for places, used in zip(rows.masked_positions_BN, rows.masked_weights_BN > 0, strict=True)
    ]
    assert any(comes_twice) == (mask_sampling == "google")
    types_BL = (np.arange(16) > rows.num_tokens_B[:, None] // 2).astype(np.uint8)
    rows = replace(rows, token_type_ids_BL=types_BL)
    shared = to_batch(rows, config.seed, CPU)
    padded = to_batch(rows, config.seed, CPU, keep_padding=True)
    assert shared.input_ids_BL.shape == (4, 16)
    assert padded.input_ids_BL.shape == (6, 16)
    assert padded.places_T is None
    model = JointElectra(config, {"cls": 2, "sep": 3, "mask": 4, "pad": 0}).train()

    def learnt(batch: Batch) -> tuple[Losses, dict[str, Tensor]]:
        model.zero_grad()
        losses: Losses = model(batch)
        losses.total.backward()
        named = model.named_parameters()
        return losses, {name: p.grad.clone() for name, p in named if p.grad is not None}

    found, gradients = learnt(shared)
    wanted, wanted_gradients = learnt(padded)
    for name in ("total", "generator", "discriminator", "replaced_share"):
        assert getattr(found, name).item() == pytest.approx(getattr(wanted, name).item(), rel=1e-5)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_sampling_noise_follows_from_seed_step_and_index(
    config: RunConfig, make_micro_batch: MakeMicroBatch
) -> None:
    def noise(seed: int, step: int, index: int) -> Tensor:
        micro_batch = make_micro_batch(config, index, step=step, is_padded=False)
        return to_batch(micro_batch, seed, CPU).uniforms_BN

    first = noise(1, 2, 3)
    assert torch.equal(first, noise(1, 2, 3))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 2), (1, 3, 2)):
        assert not (noise(*other) == first).any()
