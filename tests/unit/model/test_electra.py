import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest, truncnorm

from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import DataConfig, ObjectiveConfig, RunConfig
from electra_dist.errors import UserError
from electra_dist.model import random
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra, initialize, truncated_normal_
from electra_dist.model.objectives import masked_logits
from electra_dist.model.padding import stored_shapes

MakeBatch = Callable[..., Batch]

NUM_SEEDS = 16


def recipe(name: str, vocab_size: int = 30522) -> RunConfig:
    config = RECIPES[name]()
    return replace(config, model=replace(config.model, vocab_size=vocab_size))


@pytest.mark.parametrize(
    ("name", "joint", "discriminator"),
    [
        ("small", 14_196_219, 13_549_057),
        ("small_pp", 23_122_875, 13_549_057),
        ("base", 119_386_427, 109_483_009),
        ("large", 354_655_291, 335_142_913),
    ],
)
def test_unique_parameters_are_as_many_as_in_google_research_electra(
    name: str, joint: int, discriminator: int
) -> None:
    with torch.device("meta"):
        model = JointElectra(recipe(name))
    assert model.discriminator is not None
    # The padding of the word table is no parameter: it is zeros, and stands in no file.
    assert sum(map(math.prod, stored_shapes(model).values())) == joint
    assert sum(map(math.prod, stored_shapes(model.discriminator).values())) == discriminator


@torch.no_grad()
def test_the_first_losses_of_small_are_those_of_a_uniform_guess(
    make_batch: MakeBatch,
) -> None:
    config = replace(recipe("small"), data=DataConfig(sequence_length=128))
    model = JointElectra(config)
    expected_losses, generator_losses, discriminator_losses = [], [], []
    for seed in range(NUM_SEEDS):
        # Filled anew instead of built anew: a tenth of the time is saved.
        initialize(model, seed, config.model.initializer_range)
        batch = make_batch(config, [128] * 2, seed)
        random.seed_dropout(seed, 0, 0)
        losses = model(batch)
        random.seed_dropout(seed, 0, 0)
        logits = masked_logits(model, batch)[..., : model.vocab_size]
        expected_losses.append(-logits.log_softmax(-1).mean().item())
        generator_losses.append(losses.generator.item())
        discriminator_losses.append(losses.discriminator.item())
    # ln V = 10.326, and a little more for the spread of the logits. The mean over all ids is what
    # many rows would come to; the 38 slots of these two rows scatter around it by 0.033.
    for expected, found in zip(expected_losses, generator_losses, strict=True):
        assert 10.32 < expected < 10.37
        assert found == pytest.approx(expected, abs=0.12)
    assert 10.30 < np.mean(generator_losses) < 10.45
    assert np.mean(discriminator_losses) == pytest.approx(0.70, abs=0.04)
    # The glorot last layer spreads them: 50 x 0.036 of the total.
    assert np.std(discriminator_losses) == pytest.approx(0.036, abs=0.015)


@torch.no_grad()
def test_with_the_last_layer_zeroed_the_discriminators_part_is_50_ln_2(
    make_batch: MakeBatch, config: RunConfig
) -> None:
    for num_tokens in ([24, 24], [24, 7]):
        model = JointElectra(config)
        assert model.discriminator is not None
        model.discriminator.head.out.weight.zero_()
        losses = model(make_batch(config, num_tokens))
        # Exactly, but for the rounding of float32: of ln 2, and of a total near 40.
        assert losses.discriminator.item() == pytest.approx(math.log(2), abs=1e-7)
        part = losses.total.item() - losses.generator.item()
        assert part == pytest.approx(50 * math.log(2), abs=1e-5)


def test_weights_follow_from_the_seed_and_the_name_alone(config: RunConfig) -> None:
    weights = dict(JointElectra(config).named_parameters())
    again = dict(JointElectra(config).named_parameters())
    other = dict(JointElectra(replace(config, seed=config.seed + 1)).named_parameters())
    deeper = JointElectra(replace(config, model=replace(config.model, generator_num_layers=3)))
    deep = dict(deeper.named_parameters())
    for name, weight in weights.items():
        assert torch.equal(weight, again[name]), name
        assert torch.equal(weight, deep[name]), name
        if weight.dim() == 2:
            assert not torch.equal(weight, other[name]), name
    # Layers and towers do not repeat each other's numbers.
    same = [name for name in weights if name.endswith("layers.0.ffn_in.weight")]
    assert len(same) == 2
    first, second = (weights[name].flatten()[:1000] for name in same)
    assert not (first == second).any()


def test_filling_a_used_module_anew_makes_it_a_new_one(config: RunConfig) -> None:
    model = JointElectra(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    initialize(model, config.seed, config.model.initializer_range)
    fresh = JointElectra(config).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())


def test_building_a_module_draws_nothing_from_the_default_generator(config: RunConfig) -> None:
    JointElectra(config)
    state = torch.get_rng_state()
    torch.rand(1)
    weights = JointElectra(config).state_dict()
    torch.set_rng_state(state)
    again = JointElectra(config).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_an_unknown_objective_names_those_that_there_are(config: RunConfig) -> None:
    config = replace(config, objective=ObjectiveConfig(name="elctra"))
    with pytest.raises(UserError, match=r"objective\.name = 'elctra' .* electra, mlm"):
        JointElectra(config)


def test_a_module_needs_a_vocabulary_size(config: RunConfig) -> None:
    config = replace(config, model=replace(config.model, vocab_size=None))
    with pytest.raises(UserError, match=r"model\.vocab_size"):
        JointElectra(config)


def test_weights_start_from_a_normal_distribution_cut_at_two_deviations() -> None:
    values = torch.empty(200_000)
    truncated_normal_(values, 0.02, torch.Generator().manual_seed(1))
    cut = truncnorm(-2, 2, scale=0.02)
    assert values.abs().max() <= 0.04 * (1 + 1e-6)
    assert kstest(values.double().numpy(), cut.cdf).pvalue > 0.01
