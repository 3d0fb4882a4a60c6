"""The first loss of `small` for each seed: a whole micro-batch, with dropout as in training."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from electra_dist.config.recipes import RECIPES
from electra_dist.model import random
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra, initialize

NUM_SEEDS = 16


@pytest.mark.slow
@torch.no_grad()
def test_every_seed_of_small_starts_from_a_uniform_guess(
    make_batch: Callable[..., Batch],
) -> None:
    small = RECIPES["small"]()
    config = replace(small, model=replace(small.model, vocab_size=30522))
    model = JointElectra(config).train()
    discriminator_losses = []
    for seed in range(NUM_SEEDS):
        initialize(model, seed, config.model.initializer_range)
        random.seed_dropout(seed, 0, 0)
        losses = model(make_batch(config, [128] * config.batch.micro_batch_size, seed))
        print(f"seed {seed:2}: {losses.generator:.4f} {losses.discriminator:.4f}")
        # ln 30522 = 10.326; the 608 slots of 32 rows scatter by 0.2 / sqrt(608) = 0.008 a seed.
        assert 10.30 < losses.generator < 10.45
        discriminator_losses.append(losses.discriminator.item())
    assert np.mean(discriminator_losses) == pytest.approx(0.70, abs=0.04)
