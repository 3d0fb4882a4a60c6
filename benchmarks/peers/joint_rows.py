"""Made-up rows for the joint step: full ones, real lengths, and short documents packed or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import BatchConfig, RunConfig
from electra_dist.data.examples import pack_document
from electra_dist.data.masking import MaskRule, mask_rows
from electra_dist.data.rows import Rows, assemble, assemble_blocks
from electra_dist.data.store import SpecialIds
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.protocol import to_batch
from electra_dist.model.electra import JointElectra

CLS, SEP, MASK, FIRST = 101, 102, 103, 1000
SPECIAL = cast(SpecialIds, SimpleNamespace(cls=CLS, sep=SEP, mask=MASK, pad=0))
NUM_ROWS = 16
MEAN_SENTENCE, MEDIAN_DOCUMENT = 20, 400
"""Tokens, of made-up documents with log-normal lengths, as those of books and web pages are."""
MEAN_SHORT = 30


def small(*, dropout: float = 0.1) -> RunConfig:
    """`small` with one micro-batch of 16 rows a step."""
    config = RECIPES["small"]()
    model = replace(
        config.model, vocab_size=30522, hidden_dropout=dropout, attention_dropout=dropout
    )
    batch = BatchConfig(global_batch_size=NUM_ROWS, micro_batch_size=NUM_ROWS)
    return replace(config, model=model, batch=batch)


def full_rows(config: RunConfig) -> MicroBatch:
    """Two segments that fill each row."""
    length = config.data.sequence_length
    first = np.full(NUM_ROWS, (length - 3) // 2)
    return _two_segments(config, first, length - 3 - first)


def real_rows(config: RunConfig, seed: int = 1) -> MicroBatch:
    """Rows with the lengths that `corpus pack` gives long documents: one in 20 or so is short."""
    rng = np.random.default_rng(seed)
    examples: list[tuple[int, int, int]] = []
    while len(examples) < 50 * NUM_ROWS:
        size = int(rng.lognormal(np.log(MEDIAN_DOCUMENT), 1.0)) + 10
        ends = np.cumsum(rng.poisson(MEAN_SENTENCE, size // MEAN_SENTENCE + 1) + 1).tolist()
        examples += pack_document(0, ends, config.data.sequence_length, "full", rng)
    chosen = np.array(examples)[rng.permutation(len(examples))[:NUM_ROWS]]
    return _two_segments(config, chosen[:, 1], chosen[:, 2])


def _two_segments(config: RunConfig, length_a: Any, length_b: Any) -> MicroBatch:
    windows = _tokens(config, (NUM_ROWS, config.data.sequence_length + 1))
    return _micro_batch(config, assemble(windows, length_a, length_b, SPECIAL))


def short_documents(config: RunConfig) -> tuple[MicroBatch, list[MicroBatch]]:
    """16 packed rows of documents of 30 tokens on average; and those, 16 a batch, one a row."""
    length = config.data.sequence_length
    rng = np.random.default_rng(2)
    rows: list[list[int]] = [[]]
    while len(rows) <= NUM_ROWS:
        size = int(np.clip(rng.exponential(MEAN_SHORT - 4), 2, length - 2)) + 2
        if sum(rows[-1]) + size > length:
            rows.append([])
        rows[-1].append(size)
    rows.pop()  # the row that was begun last
    blocks = [np.array(row) - 2 for row in rows]
    windows = _tokens(config, (NUM_ROWS, length + 1))
    packed = assemble_blocks(
        windows, np.array([len(row) for row in blocks]), np.concatenate(blocks), SPECIAL
    )
    sizes = np.concatenate(blocks)
    alone = [
        _micro_batch(
            config,
            assemble(
                _tokens(config, (NUM_ROWS, length + 1)),
                sizes[start : start + NUM_ROWS],
                np.zeros(NUM_ROWS, np.int64),
                SPECIAL,
            ),
        )
        for start in range(0, len(sizes) - NUM_ROWS + 1, NUM_ROWS)
    ]
    # The batch whose documents are the most ordinary.
    alone.sort(key=lambda batch: abs(batch.num_tokens_B.mean() - MEAN_SHORT))
    return _micro_batch(config, packed), alone


def compare_losses(
    config: RunConfig, packed: MicroBatch, make_padded: Callable[..., Any]
) -> dict[str, float]:
    """Losses of packed rows, and of their documents a row each, on the same masks and noise."""
    model = JointElectra(config).train()
    batch = to_batch(packed, config.seed, torch.device("cpu"))
    with torch.no_grad():
        together = model(batch)
        apart = model(_apart(batch, make_padded(packed, config.seed, torch.device("cpu"))))
    pairs = {
        name: (float(getattr(together, name)), float(getattr(apart, name)))
        for name in ("generator", "discriminator")
    }
    return {
        **{f"{name}, packed": one for name, (one, _) in pairs.items()},
        **{f"{name}, padded": other for name, (_, other) in pairs.items()},
        "largest relative difference": max(abs(a - b) / b for a, b in pairs.values()),
    }


def _apart(batch: Any, template: Any) -> Any:
    """Every block of a packed batch as a padded row of its own."""
    num_rows, length = batch.input_ids_BL.shape
    blocks_BL = batch.block_ids_BL.long()
    fields: dict[str, list[torch.Tensor]] = {}
    for row in range(num_rows):
        for block in range(1, int(blocks_BL[row].max()) + 1):
            places = torch.nonzero(blocks_BL[row] == block).squeeze(1)
            start, size = int(places[0]), len(places)
            for name in ("input_ids_BL", "masked_ids_BL", "token_type_ids_BL"):
                padded = torch.zeros(length, dtype=torch.int64)
                padded[:size] = getattr(batch, name)[row, places]
                fields.setdefault(name, []).append(padded)
            fields.setdefault("attention_mask_BL", []).append(torch.arange(length) < size)
            positions = batch.masked_positions_BN[row]
            inside = (positions >= start) & (positions < start + size)
            weights = batch.masked_weights_BN[row] * inside
            fields.setdefault("masked_weights_BN", []).append(weights)
            fields.setdefault("masked_positions_BN", []).append(
                torch.where(weights > 0, positions - start, 0)
            )
            fields.setdefault("uniforms_BN", []).append(batch.uniforms_BN[row])
    stacked: dict[str, Any] = {name: torch.stack(values) for name, values in fields.items()}
    return template._replace(**stacked, block_ids_BL=None, position_ids_BL=None)


def _tokens(config: RunConfig, shape: tuple[int, int]) -> Any:
    assert config.model.vocab_size is not None
    rng = np.random.default_rng(0)
    # Word frequencies fall off as in text: most lookups hit few rows of the table.
    drawn = rng.zipf(1.2, shape) % (config.model.vocab_size - FIRST)
    return (drawn + FIRST).astype(np.uint16)


def _micro_batch(config: RunConfig, rows: Rows) -> MicroBatch:
    rule = MaskRule(
        seed=0,
        mask_prob=config.objective.mask_prob,
        max_masked=config.max_masked,
        mask_id=MASK,
        never=(CLS, SEP, MASK),
    )
    masks = mask_rows(rows.input_ids_BL, rows.num_tokens_B, np.arange(len(rows.num_tokens_B)), rule)
    return MicroBatch(
        step=0,
        index=0,
        is_real=True,
        input_ids_BL=rows.input_ids_BL,
        masked_ids_BL=masks.masked_ids_BL,
        token_type_ids_BL=rows.token_type_ids_BL,
        num_tokens_B=rows.num_tokens_B,
        masked_positions_BN=masks.positions_BN,
        masked_weights_BN=masks.weights_BN,
        block_ids_BL=rows.block_ids_BL,
        position_ids_BL=rows.position_ids_BL,
    )
