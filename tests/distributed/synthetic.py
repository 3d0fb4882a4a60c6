"""Made-up micro-batches for `tiny`: engines can be compared without a corpus."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import BatchConfig, EngineConfig, RunConfig
from electra_dist.data.masking import MaskRule, mask_rows
from electra_dist.data.stream import MicroBatch, passes

VOCAB_SIZE = 8192
PAD, CLS, SEP, MASK = 0, 2, 3, 4


def tiny_config(kind: str = "deepspeed", **engine: Any) -> RunConfig:
    """The recipe `tiny` on rows of 64 tokens, 8 micro-batches of 1 a step (M = 8)."""
    run = RECIPES["tiny"]()
    return replace(
        run,
        seed=7,
        model=replace(run.model, vocab_size=VOCAB_SIZE),
        data=replace(run.data, sequence_length=64),
        batch=BatchConfig(global_batch_size=8, micro_batch_size=1),
        engine=EngineConfig(kind=kind, **engine),  # type: ignore[arg-type]
    )


def micro_batches(config: RunConfig, step: int, rank: int, world_size: int) -> list[MicroBatch]:
    """This rank's passes of update `step` over random rows, every other one padded."""
    return [
        _micro_batch(config, step, one.micro_batch, is_real=one.is_real)
        for one in passes(rank, world_size, config.batch.num_micro_batches)
    ]


def _micro_batch(config: RunConfig, step: int, index: int, *, is_real: bool) -> MicroBatch:
    size, length = config.batch.micro_batch_size, config.data.sequence_length
    rng = np.random.default_rng([config.seed, step, index])
    # Zipf-like ids, as in text: some rows of the word table move at every step, most do not.
    ids = 5 + np.minimum(rng.zipf(1.3, (size, length)), VOCAB_SIZE - 6).astype(np.int64)
    shortest = length // 2 if index % 2 else length
    num_tokens = rng.integers(shortest, length + 1, size)
    if size > 1 and index % 2:  # any two of the others share a row
        num_tokens[0] = length
        num_tokens[1:] = rng.integers(length // 8, length // 2 + 1, size - 1)
    ids[:, 0] = CLS
    ids[np.arange(size), num_tokens - 1] = SEP
    ids[np.arange(length) >= num_tokens[:, None]] = PAD
    rule = MaskRule(
        seed=config.seed,
        mask_prob=config.objective.mask_prob,
        max_masked=config.max_masked,
        mask_id=MASK,
        never=(CLS, SEP, MASK),
    )
    positions = np.arange(size) + (step * config.batch.num_micro_batches + index) * size
    masks = mask_rows(ids, num_tokens, positions, rule)
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
