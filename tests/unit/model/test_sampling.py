"""How replacements are drawn: against the exact softmax of the generator's logits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from electra_dist.config.schema import ObjectiveConfig, RunConfig
from electra_dist.model import random
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.model.sampling import sample_uniformly, selected_positions
from tests.variants import SPECIAL_IDS

MakeBatch = Callable[..., Batch]
Scrambled = Callable[..., JointElectra]
BELOW_ONE = 1.0 - 2.0**-24


def with_objective(config: RunConfig, **values: Any) -> RunConfig:
    return replace(config, objective=ObjectiveConfig(**values))


def with_many_slots(batch: Batch, times: int) -> Batch:
    """The batch's only row, each of its slots many times, with other noise in each."""
    positions_BN = batch.masked_positions_BN.repeat(1, times)
    noise = torch.Generator().manual_seed(5)
    return batch._replace(
        masked_positions_BN=positions_BN,
        masked_weights_BN=batch.masked_weights_BN.repeat(1, times),
        uniforms_BN=torch.rand(positions_BN.shape, generator=noise),
    )


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("disallow_correct", [False, True])
@torch.no_grad()
def test_samples_come_as_often_as_the_softmax_says(
    config: RunConfig,
    make_batch: MakeBatch,
    scrambled: Scrambled,
    temperature: float,
    disallow_correct: bool,
) -> None:
    times = 4000
    knobs = {"temperature": temperature, "disallow_correct": disallow_correct}
    model = scrambled(with_objective(config, **knobs))
    once = make_batch(config, [24])
    batch = with_many_slots(once, times)
    losses = model(batch)
    assert losses.generator_logits_BNV is not None
    sampled = losses.sampled_ids_BN.view(times, -1)
    originals = batch.input_ids_BL.gather(1, batch.masked_positions_BN)[0]
    for slot in range(3):
        weights = (losses.generator_logits_BNV[0, slot].double() / temperature).softmax(-1)
        if disallow_correct:
            weights[originals[slot]] = 0.0
        expected = (weights / weights.sum()).numpy() * times
        counts = sampled[:, slot].bincount(minlength=len(expected)).numpy()
        assert counts[expected == 0].tolist() == [0] * int((expected == 0).sum())
        common = expected > 5
        found, wanted = counts[common], expected[common]
        scores = (found - wanted) ** 2 / wanted
        assert stats.chi2.sf(scores.sum(), len(scores)) > 1e-3
    # The loss is of the plain softmax in any case.
    plain = scrambled(config)(batch)
    assert torch.equal(losses.generator, plain.generator)
    if disallow_correct:
        assert losses.replaced_share == 1.0
        assert torch.equal(model(once).labels_BL, selected_positions(once))


@torch.no_grad()
def test_an_original_that_is_certain_is_still_left_out(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    batch = make_batch(config, [24, 24])
    position, original = batch.masked_positions_BN[0, 0], 17
    batch.input_ids_BL[0, position] = original
    model = scrambled(with_objective(config, disallow_correct=True))
    model.generator.head.bias[original] = 500.0  # float32 gives the others a probability of 0
    losses = model(batch)
    others = losses.generator_logits_BNV[0, 0].double().clone()
    assert others.float().softmax(-1)[original] == 1.0
    others[original] = -np.inf
    wanted = others.softmax(-1).cumsum(-1)
    exact = torch.searchsorted(wanted, batch.uniforms_BN[0, :1].double(), right=True)
    assert losses.sampled_ids_BN[0, 0] == exact


@torch.no_grad()
def test_an_annealed_temperature_follows_the_step(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    batch = make_batch(config, [24] * 8)
    knobs = {"temperature": 3.0, "temperature_end": 0.2, "temperature_anneal_steps": 8}
    model = scrambled(with_objective(config, **knobs))
    for step, temperature in ((0, 3.0), (4, 1.6), (8, 0.2), (1000, 0.2)):
        constant = scrambled(with_objective(config, temperature=temperature))
        found, wanted = model(batch._replace(step=step)), constant(batch)
        assert torch.equal(found.sampled_ids_BN, wanted.sampled_ids_BN)
    assert not torch.equal(model(batch).sampled_ids_BN, wanted.sampled_ids_BN)


def test_sampling_without_dropout_changes_the_samples_alone(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    batch = make_batch(config, [24] * 8)
    with torch.no_grad():
        still = scrambled(config)(batch)
    found = {}
    for sampling_dropout in (True, False):
        model = scrambled(with_objective(config, sampling_dropout=sampling_dropout)).train()
        random.seed_dropout(1, 2, 3)
        found[sampling_dropout] = model(batch)
    # The samples are those of evaluation, bit for bit; the loss is that of the pass with dropout.
    assert torch.equal(found[False].sampled_ids_BN, still.sampled_ids_BN)
    assert not torch.equal(found[True].sampled_ids_BN, still.sampled_ids_BN)
    assert torch.equal(found[False].generator, found[True].generator)
    assert found[False].generator != still.generator
    # Nothing but one gradient path into the generator, through the pass with dropout.
    found[False].total.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_without_dropout_at_all_the_second_pass_changes_nothing(
    calm: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    batch = make_batch(calm, [24, 12])
    for training in (True, False):
        one, two = (
            scrambled(with_objective(calm, sampling_dropout=word)).train(training)(batch)
            for word in (True, False)
        )
        assert torch.equal(one.sampled_ids_BN, two.sampled_ids_BN)
        assert torch.equal(one.total, two.total)


@settings(deadline=None)
@given(
    st.integers(6, 70_000),
    st.sets(st.integers(0, 5)),
    st.floats(0, BELOW_ONE, width=32) | st.sampled_from([0.0, BELOW_ONE]),
)
def test_a_uniform_sample_is_that_of_the_list_of_allowed_ids(
    vocab_size: int, left_out: set[int], uniform: float
) -> None:
    left_out = {id_ * (vocab_size - 1) // 5 for id_ in left_out}
    allowed = [id_ for id_ in range(vocab_size) if id_ not in left_out]
    if not allowed:
        return
    sample = sample_uniformly(torch.tensor([[uniform]]), vocab_size, left_out)
    assert sample.tolist() == [[allowed[int(uniform * len(allowed))]]]


@torch.no_grad()
def test_uniform_replacements_are_of_all_ids_but_special_ones_alike(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model = scrambled(with_objective(config, name="uniform_generator"))
    assert model.generator is None
    assert model.external_parameters() == []
    once = make_batch(config, [24])
    losses = model(with_many_slots(once, 6000))
    counts = losses.sampled_ids_BN.flatten().bincount(minlength=90)
    special = sorted(SPECIAL_IDS.values())
    assert counts[special].sum() == 0
    assert stats.chisquare(np.delete(counts.numpy(), special)).pvalue > 1e-3
    assert losses.generator == 0
    assert losses.generator_logits_BNV is None
    assert losses.total == 50.0 * losses.discriminator
    labels = model(once).labels_BL
    assert labels.any()
    assert torch.equal(labels, labels & selected_positions(once))
