import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from torch import Tensor

from electra_dist.config.schema import ObjectiveConfig, RunConfig
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.model.objectives import OBJECTIVES, replace_tokens, sample_tokens

BELOW_ONE = 1.0 - 2.0**-24
"""The largest float32 that a uniform number can be."""

MakeBatch = Callable[..., Batch]
Scrambled = Callable[..., JointElectra]


def log_probs_of(probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities).log()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_samples_follow_the_softmax_at_its_temperature(temperature: float) -> None:
    probabilities = [0.0, 0.3, 0.05, 0.0, 0.4, 0.15, 0.1, 0.0]
    num_samples = 40000
    uniforms = torch.rand(num_samples, 1, generator=torch.Generator().manual_seed(1))
    log_probs = log_probs_of(probabilities).expand(num_samples, 1, 8)
    counts = sample_tokens(log_probs, uniforms, temperature).flatten().bincount(minlength=8)
    powers = [p ** (1 / temperature) for p in probabilities]
    expected = np.array([num_samples * p / sum(powers) for p in powers])
    assert counts[expected == 0].tolist() == [0, 0, 0]
    fit = stats.chisquare(counts[expected > 0].numpy(), expected[expected > 0])
    assert fit.pvalue > 0.01


def test_samples_of_a_large_vocabulary_follow_its_softmax_block_by_block() -> None:
    vocab_size, num_samples = 128 * 5 + 37, 60_000
    generator = torch.Generator().manual_seed(3)
    log_probs = torch.randn(vocab_size, generator=generator).mul(2).log_softmax(-1)
    uniforms = torch.rand(num_samples, generator=generator)
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for chunk in uniforms.split(20_000):
        samples = sample_tokens(log_probs.expand(1, len(chunk), -1), chunk[None], 1.0)
        counts += samples.flatten().bincount(minlength=vocab_size)
    expected = log_probs.double().softmax(-1).numpy() * num_samples
    common = expected > 5
    found = np.append(counts.numpy()[common], counts.numpy()[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    assert stats.chisquare(found, wanted * found.sum() / wanted.sum()).pvalue > 0.01
    # And each is the first id whose cumulative probability is beyond its number.
    cumulative = log_probs.double().exp().cumsum(0)
    exact = torch.searchsorted(cumulative, uniforms[-20_000:].double(), right=True)
    assert (samples.flatten() != exact).float().mean() < 1e-3


@settings(deadline=None)
@given(
    st.integers(2, 400).flatmap(
        lambda size: arrays(np.float32, size, elements=st.floats(-60, 60, width=32))
    ),
    st.floats(0, BELOW_ONE, width=32) | st.sampled_from([0.0, 2.0**-30, 0.5, BELOW_ONE]),
    st.sampled_from([1.0, 0.7]),
    st.data(),
)
def test_no_draw_gives_an_id_of_probability_zero(
    logits: np.ndarray, uniform: float, temperature: float, data: st.DataObject
) -> None:
    impossible = data.draw(st.sets(st.integers(0, len(logits) - 1), max_size=len(logits) - 1))
    logits[list(impossible)] = -np.inf
    log_probs = F.log_softmax(torch.from_numpy(logits), dim=-1)
    sample = sample_tokens(log_probs[None, None], torch.tensor([[uniform]]), temperature)
    assert sample.shape == (1, 1)
    assert int(sample) not in impossible


def test_the_ends_of_the_unit_interval_give_the_first_and_last_possible_id() -> None:
    log_probs = log_probs_of([0.0, 0.2, 0.3, 0.0, 0.5, 0.0]).expand(1, 3, 6)
    uniforms = torch.tensor([[0.0, 0.2, BELOW_ONE]])
    assert sample_tokens(log_probs, uniforms, 1.0).tolist() == [[1, 2, 4]]


def test_probabilities_that_add_up_to_a_little_less_than_one_leave_no_gap_at_the_end() -> None:
    log_probs = log_probs_of([0.5, 0.4999, 0.0, 0.0]).expand(1, 2, 4)
    assert sample_tokens(log_probs, torch.tensor([[0.99995, BELOW_ONE]]), 1.0).tolist() == [[1, 1]]


def test_a_generator_of_nans_gives_ids_that_exist() -> None:
    # The step is vetoed later on; until then no lookup may fall off the table.
    sample = sample_tokens(torch.full((1, 2, 5), math.nan), torch.tensor([[0.1, 0.9]]), 1.0)
    assert ((sample >= 0) & (sample < 5)).all()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9), st.integers(1, 12))
def test_replacement_is_that_of_a_loop_with_the_floored_mean_of_repeated_draws(
    seed: int, num_rows: int, length: int, num_slots: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 30522, (num_rows, length))
    positions = rng.integers(0, length, (num_rows, num_slots))
    weights = rng.integers(0, 2, (num_rows, num_slots))
    samples = rng.integers(0, 30522, (num_rows, num_slots))
    expected = ids.copy()
    for row in range(num_rows):
        for column in range(length):
            drawn = [
                int(samples[row, slot])
                for slot in range(num_slots)
                if positions[row, slot] == column and weights[row, slot]
            ]
            if drawn:
                expected[row, column] = sum(drawn) // len(drawn)
    batch = Batch(
        input_ids_BL=torch.from_numpy(ids),
        masked_ids_BL=torch.from_numpy(ids),
        token_type_ids_BL=torch.zeros(num_rows, length, dtype=torch.long),
        attention_mask_BL=None,
        masked_positions_BN=torch.from_numpy(positions),
        masked_weights_BN=torch.from_numpy(weights).float(),
        uniforms_BN=torch.zeros(num_rows, num_slots),
    )
    found = replace_tokens(batch, torch.from_numpy(samples))
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_unused_slots_change_nothing(
    objective: str, config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    config = replace(config, objective=ObjectiveConfig(name=objective))
    model, batch = scrambled(config), make_batch(config, [24, 12])
    noise = torch.Generator().manual_seed(0)
    extra = batch._replace(
        masked_positions_BN=torch.cat(
            [batch.masked_positions_BN, torch.randint(0, 24, (2, 5), generator=noise)], dim=1
        ),
        masked_weights_BN=torch.cat([batch.masked_weights_BN, torch.zeros(2, 5)], dim=1),
        uniforms_BN=torch.cat([batch.uniforms_BN, torch.rand(2, 5, generator=noise)], dim=1),
    )
    wanted, found = model(batch), model(extra)
    for name in ("total", "generator", "discriminator", "replaced_share"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))
    if wanted.labels_BL is not None:
        assert torch.equal(found.labels_BL, wanted.labels_BL)


def test_a_row_without_any_selected_position_has_no_generator_loss(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    batch = make_batch(config, [24])
    batch = batch._replace(masked_weights_BN=torch.zeros_like(batch.masked_weights_BN))
    losses = scrambled(config)(batch)
    assert losses.generator.item() == 0
    assert losses.replaced_share.item() == 0
    assert not losses.labels_BL.any()
    assert losses.total.isfinite()


def test_weights_of_the_two_losses_and_temperature_are_those_of_the_config(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    knobs = ObjectiveConfig(gen_weight=3.0, disc_weight=7.0, temperature=0.25)
    batch = make_batch(config, [24] * 8)
    losses = scrambled(replace(config, objective=knobs))(batch)
    expected = 3.0 * losses.generator + 7.0 * losses.discriminator
    assert losses.total.item() == pytest.approx(expected.item())
    cooled = sample_tokens(losses.generator_logits_BNV, batch.uniforms_BN, 0.25)
    assert torch.equal(losses.sampled_ids_BN, cooled)
    plain = sample_tokens(losses.generator_logits_BNV, batch.uniforms_BN, 1.0)
    assert not torch.equal(cooled, plain)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_all_that_is_reported_but_the_total_is_detached(
    objective: str, config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    # Metrics that held on to the graph would hold on to a step's activations.
    config = replace(config, objective=ObjectiveConfig(name=objective))
    model, batch = scrambled(config), make_batch(config, [24, 12])
    for is_training in (False, True):
        losses = model.train(is_training)(batch)
        with_graph = [n for n, v in losses._asdict().items() if v is not None and v.requires_grad]
        assert with_graph == ["total"]
    assert losses.generator_logits_BNV is None  # the largest tensor of all: evaluation's alone


def test_the_discriminators_loss_sends_no_gradient_through_the_samples(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    config = replace(config, objective=ObjectiveConfig(gen_weight=0.0))
    model = scrambled(config)
    model(make_batch(config, [24, 24])).total.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("generator."):
            assert not parameter.grad.any(), name
        if name.startswith("discriminator.") and name.endswith("weight"):
            assert parameter.grad.any(), name


def test_mlm_trains_one_tower_of_the_discriminators_size(
    make_config: Callable[..., RunConfig], make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    config = make_config("mlm")
    model, batch = scrambled(config), make_batch(config, [24, 15])
    assert model.discriminator is None
    joint = JointElectra(make_config("electra"))
    tower = {name: p.shape for name, p in model.generator.encoder.named_parameters()}
    assert joint.discriminator is not None
    assert tower == {n: p.shape for n, p in joint.discriminator.encoder.named_parameters()}

    losses = model(batch)
    positions, used = batch.masked_positions_BN, batch.masked_weights_BN > 0
    originals = batch.input_ids_BL.gather(1, positions)
    logits = model.generator(
        batch.masked_ids_BL, batch.token_type_ids_BL, batch.attention_mask_BL, positions
    )
    expected = F.cross_entropy(logits[used].double(), originals[used])
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses.generator.item() == pytest.approx(expected.item(), rel=1e-5)
    losses.total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
