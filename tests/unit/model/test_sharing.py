"""What the towers share: tied tables, tables of their own, one transformer, disentangled tables."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.config.schema import EngineConfig, RunConfig
from electra_dist.model import random
from electra_dist.model.batch import Batch
from electra_dist.model.disentangled import DisentangledEmbeddings
from electra_dist.model.electra import JointElectra
from electra_dist.model.encoder import Embeddings
from electra_dist.model.padding import stored_shapes
from tests.variants import SPECIAL_IDS, VARIANTS, variant_of

MakeBatch = Callable[..., Batch]
Scrambled = Callable[..., JointElectra]


def with_model(config: RunConfig, **values: Any) -> RunConfig:
    return replace(config, model=replace(config.model, **values))


def gradients(config: RunConfig, model: JointElectra, batch: Batch, **weights: float) -> set[str]:
    """Names of what the loss with these weights reaches."""
    model.objective = replace(config.objective, **weights)
    model.zero_grad()
    model(batch).total.backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.fixture
def apart(config: RunConfig) -> RunConfig:
    return with_model(config, embedding_sharing="gradient_disentangled")


def test_each_loss_reaches_its_own_side_of_disentangled_tables(
    apart: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model, batch = scrambled(apart).train(), make_batch(apart, [24, 15])
    difference = "discriminator.embeddings.difference."
    reached = gradients(apart, model, batch, gen_weight=0.0, disc_weight=50.0)
    tables = ("word.weight", "position.weight", "token_type.weight")
    names = (*tables, "layer_norm.weight", "layer_norm.bias")
    assert {f"{difference}{name}" for name in names} <= reached
    assert not [name for name in reached if name.startswith(("embeddings.", "generator."))]
    reached = gradients(apart, model, batch, gen_weight=1.0, disc_weight=0.0)
    assert {f"embeddings.{name}" for name in names} <= reached
    assert not [name for name in reached if name.startswith("discriminator.")]


def test_disentangled_tables_begin_as_tied_ones_to_the_bit(
    config: RunConfig, apart: RunConfig, make_batch: MakeBatch
) -> None:
    batch = make_batch(config, [24, 15])
    found = {}
    for name, one in (("tied", config), ("apart", apart)):
        model = JointElectra(one)
        random.seed_dropout(1, 0, 0)
        losses = model(batch)
        losses.total.backward()
        found[name] = losses, {n: p.grad for n, p in model.named_parameters()}
    (tied, theirs), (disentangled, ours) = found["tied"], found["apart"]
    assert torch.equal(tied.total, disentangled.total)
    # The gradients of the two sides add up to that of a tied table.
    for name in ("word.weight", "position.weight", "token_type.weight", "layer_norm.weight"):
        both = ours[f"embeddings.{name}"] + ours[f"discriminator.embeddings.difference.{name}"]
        torch.testing.assert_close(both, theirs[f"embeddings.{name}"])


@torch.no_grad()
def test_merged_embeddings_give_the_vectors_of_the_discriminator(
    apart: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model, batch = scrambled(apart), make_batch(apart, [24, 15])
    assert model.discriminator is not None
    embeddings = model.discriminator.embeddings
    assert isinstance(embeddings, DisentangledEmbeddings)
    merged = Embeddings(apart.model, 90)
    assert merged.load_state_dict(embeddings.merged()) is not None
    ids = (batch.input_ids_BL, batch.token_type_ids_BL)
    assert torch.equal(merged(*ids), embeddings(*ids))
    assert not torch.allclose(merged(*ids), model.embeddings(*ids))


def test_untied_tables_are_as_wide_as_the_generator_and_apart_from_the_discriminators(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    config = with_model(config, untied_generator_embeddings=True)
    model, batch = scrambled(config).train(), make_batch(config, [24, 15])
    assert model.generator is not None
    assert stored_shapes(model)["generator.embeddings.word.weight"] == (90, 64)
    assert model.generator.encoder.embeddings_project is None
    reached = gradients(config, model, batch, gen_weight=1.0, disc_weight=0.0)
    assert "generator.embeddings.word.weight" in reached
    assert not [name for name in reached if not name.startswith("generator.")]
    reached = gradients(config, model, batch, gen_weight=0.0, disc_weight=50.0)
    assert "embeddings.word.weight" in reached
    assert not [name for name in reached if name.startswith("generator.")]


def test_one_transformer_is_both_towers(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    config = with_model(config, untied_generator=False)
    model, batch = scrambled(config).train(), make_batch(config, [24, 15])
    assert model.generator is not None
    assert model.discriminator is not None
    assert model.generator.encoder is model.discriminator.encoder is model.encoder
    assert len(model.encoder.layers) == config.model.num_layers
    for weights in ({"gen_weight": 0.0}, {"disc_weight": 0.0}):
        reached = gradients(config, model, batch, **weights)
        assert "encoder.layers.0.qkv.weight" in reached
    # Its passes are those of two towers with the same weights.
    wide = {"generator_num_layers": 2, "generator_hidden_size": 128}
    two = JointElectra(with_model(config, untied_generator=True, **wide)).train()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in two.named_parameters():
            _, _, inside = name.partition(".encoder.")
            parameter.copy_(parameters[f"encoder.{inside}" if inside else name])
    two.objective = model.objective
    for one in (model, two):
        random.seed_dropout(3, 1, 4)
        one.losses = one(batch)
    assert torch.equal(model.losses.total, two.losses.total)


def test_initial_weights_of_a_tower_do_not_depend_on_what_is_shared(config: RunConfig) -> None:
    plain = dict(JointElectra(config).named_parameters())
    for name in (one for one in VARIANTS if not one.startswith("modern")):
        for weight, parameter in JointElectra(variant_of(config, name)).named_parameters():
            assert parameter.any() or weight.endswith("bias") or ".difference." in weight
            if ".difference." in weight:
                assert not parameter.any()
            elif weight in plain and plain[weight].shape == parameter.shape:
                assert torch.equal(plain[weight], parameter), (name, weight)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_recomputing_layers_changes_no_bit_of_any_variant(
    name: str, config: RunConfig, make_batch: MakeBatch
) -> None:
    config = variant_of(config, name)
    batch = make_batch(config, [24, 9])
    real = batch.attention_mask_BL
    assert real is not None
    found = []
    for recompute in (False, True):
        engine = EngineConfig(activation_checkpointing=recompute)
        model = JointElectra(replace(config, engine=engine), SPECIAL_IDS)
        random.seed_dropout(1, 2, 3)
        losses = model(batch._replace(places_T=real.flatten().nonzero().squeeze(1)))
        losses.total.backward()
        found.append([losses.total, *(p.grad for p in model.parameters())])
        assert all(p.grad is not None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", list(VARIANTS))
@settings(max_examples=3, deadline=None)
@given(st.lists(st.integers(5, 24), min_size=1, max_size=4), st.integers(0, 2**20))
def test_padding_and_leaving_it_out_change_no_loss_of_any_variant(
    name: str, num_tokens: list[int], seed: int
) -> None:
    from tests.unit.model.conftest import make_batch, make_config, scrambled

    config = variant_of(make_config(hidden_dropout=0.0, attention_dropout=0.0), name)
    model = scrambled(config).train()
    batch = make_batch(config, num_tokens, seed=seed)
    wanted = model(batch)
    real = (torch.arange(24) < torch.tensor(num_tokens)[:, None]).flatten()
    padded = batch._replace(
        attention_mask_BL=real.view(-1, 24),
        places_T=real.nonzero().squeeze(1),
        sampled_ids_BN=wanted.sampled_ids_BN if model.discriminator is not None else None,
    )
    found = model(padded)
    for field in ("total", "generator", "discriminator"):
        torch.testing.assert_close(
            getattr(found, field), getattr(wanted, field), rtol=1e-4, atol=1e-5
        )
