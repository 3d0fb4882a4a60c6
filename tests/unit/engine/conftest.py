"""A small run of the reference engine on one rank, and made-up micro-batches for it."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from electra_dist.config.schema import (
    BatchConfig,
    DataConfig,
    EngineConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)
from electra_dist.data.masking import MaskRule, mask_rows
from electra_dist.data.store import SpecialIds
from electra_dist.data.stream import MicroBatch

PAD, CLS, SEP, MASK = 0, 2, 3, 4


def make_micro_batch(
    config: RunConfig,
    index: int = 0,
    *,
    step: int = 0,
    is_real: bool = True,
    is_padded: bool,
    lengths: Sequence[int] = (),
) -> MicroBatch:
    """Random rows with real masks; with `is_padded`, of different lengths, or of those given."""
    size, length = len(lengths) or config.batch.micro_batch_size, config.data.sequence_length
    rng = np.random.default_rng([step, index])
    ids = rng.integers(5, config.model.vocab_size, (size, length))
    num_tokens = rng.integers(length // 2, length, size) if is_padded else np.full(size, length)
    num_tokens = np.array(lengths) if lengths else num_tokens
    ids[:, 0] = CLS
    ids[np.arange(size), num_tokens - 1] = SEP
    ids[np.arange(length) >= num_tokens[:, None]] = PAD
    rule = MaskRule.of(config, SpecialIds(pad=PAD, unk=1, cls=CLS, sep=SEP, mask=MASK))
    masks = mask_rows(ids, num_tokens, np.arange(size) + (step * 100 + index) * size, rule)
    return MicroBatch(
        step=step,
        index=index,
        is_real=is_real,
        input_ids_BL=ids,
        masked_ids_BL=masks.masked_ids_BL,
        token_type_ids_BL=np.zeros_like(ids),
        num_tokens_B=num_tokens,
        masked_positions_BN=masks.positions_BN,
        masked_weights_BN=masks.weights_BN,
    )


@pytest.fixture
def config() -> RunConfig:
    """Two layers of 64 without dropout, four micro-batches of two rows a step."""
    return RunConfig(
        recipe="test",
        seed=5,
        model=ModelConfig(
            num_layers=2,
            hidden_size=64,
            embedding_size=32,
            generator_num_layers=1,
            generator_hidden_size=32,
            vocab_size=60,
            max_position_embeddings=32,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            initializer_range=0.1,
        ),
        data=DataConfig(sequence_length=16),
        batch=BatchConfig(global_batch_size=8, micro_batch_size=2),
        optim=OptimConfig(learning_rate=1e-3),
        engine=EngineConfig(kind="reference"),
    )


@pytest.fixture(name="make_micro_batch")
def make_micro_batch_fixture() -> Callable[..., MicroBatch]:
    return make_micro_batch
