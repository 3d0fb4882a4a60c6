"""A joint module of a few thousand weights, and batches for it with real masks."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from electra_dist.config.schema import DataConfig, ModelConfig, ObjectiveConfig, RunConfig
from electra_dist.data.masking import MaskRule, mask_rows
from electra_dist.model import random
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.model.padding import clear_padding
from tests.variants import SPECIAL_IDS

PAD, CLS, SEP, MASK = 0, 2, 3, 4


def make_config(objective: str = "electra", **model: float) -> RunConfig:
    """Two layers of 128 (two heads), a generator of 64, V 90, L 24; `model` replaces fields."""
    fields: dict[str, float] = {
        "num_layers": 2,
        "hidden_size": 128,
        "embedding_size": 32,
        "generator_num_layers": 2,
        "generator_hidden_size": 64,
        "vocab_size": 90,
        "max_position_embeddings": 40,
        # At 0.02 so narrow a network hardly sees its input, and a wrong one would go unnoticed.
        "initializer_range": 0.2,
    }
    return RunConfig(
        recipe="test",
        seed=11,
        model=ModelConfig(**{**fields, **model}),  # type: ignore[arg-type]
        objective=ObjectiveConfig(name=objective),
        data=DataConfig(sequence_length=24),
    )


def scrambled(config: RunConfig, seed: int = 0) -> JointElectra:
    """A module in eval mode whose biases and LayerNorms are no longer 0 and 1."""
    model = JointElectra(config, SPECIAL_IDS)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=noise)
    clear_padding(model)
    return model.eval()


def make_batch(config: RunConfig, num_tokens: Sequence[int], seed: int = 0) -> Batch:
    """A row for each of `num_tokens`: [CLS] A [SEP] B [SEP], padded to the sequence length."""
    assert config.model.vocab_size is not None
    length = config.data.sequence_length
    num_tokens_B = np.array(num_tokens)
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, config.model.vocab_size, (len(num_tokens), length))
    ids[:, 0] = CLS
    for row, end in zip(ids, num_tokens, strict=True):
        row[[end // 2, end - 1]] = SEP
        row[end:] = PAD
    columns = np.arange(length)
    real = columns < num_tokens_B[:, None]
    rule = MaskRule(
        seed=seed,
        mask_prob=config.objective.mask_prob,
        max_masked=config.max_masked,
        mask_id=MASK,
        never=(CLS, SEP, MASK),
    )
    masks = mask_rows(ids, num_tokens_B, np.arange(len(num_tokens)), rule)
    return Batch(
        input_ids_BL=torch.from_numpy(ids),
        masked_ids_BL=torch.from_numpy(masks.masked_ids_BL),
        token_type_ids_BL=torch.from_numpy((columns > num_tokens_B[:, None] // 2) & real).long(),
        attention_mask_BL=None if real.all() else torch.from_numpy(real),
        masked_positions_BN=torch.from_numpy(masks.positions_BN).long(),
        masked_weights_BN=torch.from_numpy(masks.weights_BN),
        uniforms_BN=random.sampling_uniforms(masks.positions_BN.shape, seed, 0, 0),
    )


@pytest.fixture
def config() -> RunConfig:
    return make_config()


@pytest.fixture
def calm(config: RunConfig) -> RunConfig:
    """`config` without dropout."""
    model = replace(config.model, hidden_dropout=0.0, attention_dropout=0.0)
    return replace(config, model=model)


@pytest.fixture(name="make_config")
def make_config_fixture() -> Callable[..., RunConfig]:
    return make_config


@pytest.fixture(name="scrambled")
def scrambled_fixture() -> Callable[..., JointElectra]:
    return scrambled


@pytest.fixture(name="make_batch")
def make_batch_fixture() -> Callable[..., Batch]:
    return make_batch
