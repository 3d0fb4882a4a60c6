"""A word table with rows of zeros at its end gives what the table alone gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from electra_dist.config.schema import RunConfig
from electra_dist.engine.optim import ElectraAdam, decay_groups
from electra_dist.model import random
from electra_dist.model.batch import Batch, Losses
from electra_dist.model.electra import JointElectra
from electra_dist.model.padding import stored_parameters
from tests.variants import SPECIAL_IDS, VARIANTS, variant_of

MakeBatch = Callable[..., Batch]


def pair(config: RunConfig) -> tuple[JointElectra, JointElectra]:
    """With rows of padding, and without."""
    plain = replace(config, model=replace(config.model, pad_vocab_to_multiple_of=1))
    return JointElectra(config, SPECIAL_IDS), JointElectra(plain, SPECIAL_IDS)


def steps(model: JointElectra, batch: Batch, num_steps: int = 3) -> list[Losses]:
    optimizer = ElectraAdam(decay_groups(model, 0.01), lr=1e-3)
    found = []
    for step in range(num_steps):
        random.seed_dropout(1, step, 0)
        losses = model.train()(batch)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(losses)
    return found


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_three_steps_are_those_of_the_table_alone(
    variant: str, config: RunConfig, make_batch: MakeBatch
) -> None:
    config = variant_of(config, variant)
    padded, plain = pair(config)
    assert padded.embeddings.word.weight.shape[0] in (100, 128)
    for name, value in stored_parameters(plain).items():
        assert torch.equal(stored_parameters(padded)[name], value), name
    batch = make_batch(config, [24, 11])
    for found, wanted in zip(steps(padded, batch), steps(plain, batch), strict=True):
        assert found.total.item() == pytest.approx(wanted.total.item(), rel=1e-6)
        assert found.generator.item() == pytest.approx(wanted.generator.item(), rel=1e-6)
        assert torch.equal(found.sampled_ids_BN, wanted.sampled_ids_BN)
    shown, wanted = (model.eval()(batch).generator_logits_BNV for model in (padded, plain))
    if wanted is not None:
        assert shown is not None
        assert shown.shape == wanted.shape
    # What no gradient reaches and no decay moves is still zero.
    assert not padded.embeddings.word.weight[90:].any()


def test_padding_is_never_drawn_whatever_lies_in_it(
    config: RunConfig, make_batch: MakeBatch
) -> None:
    """With numbers just below 1 a draw falls on the last id, or beyond it where that is allowed."""
    model, _ = pair(config)
    with torch.no_grad():
        model.embeddings.word.weight[90:] = 50.0
    batch = make_batch(config, [24, 24])
    batch = batch._replace(uniforms_BN=torch.full_like(batch.uniforms_BN, 1.0 - 2.0**-24))
    losses = model(batch)
    assert losses.sampled_ids_BN.max() < 90
    assert losses.sampled_ids_BN.max() > 80
    assert torch.isfinite(losses.total)
    losses.total.backward()
    table = model.embeddings.word.weight.grad
    assert table is not None
    assert not table[90:].any()
