"""FLOPs of a row and of a whole schedule, in both conventions. No torch.

Who changes a tower in `model/` changes `_layer_products` and `_head_products`; what is another in
the `modern` backbone stands in `accounting_modern`.
"""

from __future__ import annotations

from collections.abc import Iterator

from electra_dist.config import accounting_modern as modern
from electra_dist.config.accounting import Tower, towers, vocab_size
from electra_dist.config.schema import ModelConfig, RunConfig


def train_flops(config: RunConfig) -> dict[str, float]:
    """FLOPs of the whole schedule in both conventions: `google` and `usual`."""
    num_rows = config.batch.global_batch_size * config.schedule.num_steps
    return {
        "google": num_rows * google_flops_of_row(config),
        "usual": float(num_rows * flops_of_row(config)),
    }


def flops_of_row(config: RunConfig) -> int:
    """Training FLOPs of one full row, usual convention: what MFU is computed from.

    Matrix products alone, two FLOPs a multiply-add; backward costs two forwards; tables are looked
    up and not multiplied; logits are made at `max_masked` slots (electric: at all positions); of
    local attention the pairs within the window count, whatever a kernel computes behind its mask.
    Recomputation (activation checkpointing) is no model FLOP; a forward pass of its own for
    sampling is.
    """
    length = config.data.sequence_length
    products = 0
    for tower in towers(config):
        forward = sum(_head_products(config, tower))
        for _ in tower.encoders:
            if tower.embedding_size != tower.width:
                forward += length * tower.embedding_size * tower.width
            forward += sum(_encoder_products(config.model, tower, length))
        products += (tower.num_forwards + 2) * forward
    return 2 * products


def _encoder_products(model: ModelConfig, tower: Tower, length: int) -> Iterator[int]:
    """Multiply-adds of all layers and a row, forward."""
    if model.backbone == "modern":
        yield from modern.encoder_products(model, tower, length)
        return
    for _ in range(tower.num_layers):
        yield from _layer_products(tower.width, length)


def _layer_products(width: int, length: int) -> Iterator[int]:
    """Multiply-adds of a layer and a row, forward."""
    yield length * width * 3 * width
    yield length * length * width  # scores
    yield length * length * width  # weighted values
    yield length * width * width
    yield 2 * length * width * 4 * width


def _head_products(config: RunConfig, tower: Tower) -> Iterator[int]:
    if config.model.backbone == "modern":
        places = config.max_masked if tower.makes_logits else config.data.sequence_length
        yield from modern.head_products(tower, places, vocab_size(config))
        return
    if tower.makes_logits:
        embedding = tower.embedding_size
        slots = config.max_masked
        if tower.makes_logits_everywhere:
            slots = config.data.sequence_length
        yield slots * len(tower.encoders) * tower.width * embedding
        yield slots * embedding * vocab_size(config)
    else:
        yield config.data.sequence_length * tower.width * tower.width
        yield config.data.sequence_length * tower.width


# Of google-research/electra, flops_computation.py: FLOPs an element.
_DROPOUT, _LAYER_NORM, _ACTIVATION, _SOFTMAX = 4, 5, 8, 5
_OUTPUT_FRACTION = 0.15625
"""Share of positions that it makes logits at, whatever the mask probability."""


def google_flops_of_row(config: RunConfig) -> float:
    """Training FLOPs of one row as google-research/electra counts them.

    Backward costs one forward; a look-up is a dense product with the table; every element-wise
    operation counts; the LayerNorm after attention counts once a position, not once an element (a
    slip of the original that its published numbers contain).
    """
    length, rows = config.data.sequence_length, vocab_size(config)
    total = 0.0
    for tower in towers(config):
        if config.model.backbone == "modern":
            forward = modern.google_flops(config.model, tower, length, rows, _OUTPUT_FRACTION)
            total += forward * (tower.num_forwards + 1) / 2
            continue
        width, embedding = tower.width, tower.embedding_size
        forward = 2.0 * embedding * (rows + length + 2) + 2 * embedding
        forward += (_LAYER_NORM + _DROPOUT) * embedding
        for _ in tower.encoders:
            if embedding != width:
                forward += 2 * width * embedding + width
            forward += tower.num_layers * _google_layer(width, tower.num_heads, length)
        if tower.makes_logits:
            inputs = len(tower.encoders) * width
            hidden = 2 * inputs * embedding + embedding + (_ACTIVATION + _LAYER_NORM) * embedding
            share = 1.0 if tower.makes_logits_everywhere else _OUTPUT_FRACTION
            forward += share * (2 * embedding * rows + hidden + (_SOFTMAX + 2) * rows)
        else:
            forward += 2 * width * width + width + _ACTIVATION * width + 2 * width
        total += forward * (tower.num_forwards + 1) / 2
    return 2.0 * length * total


def _google_layer(width: int, num_heads: int, length: int) -> int:
    """FLOPs of a layer a position, forward."""
    inner = 4 * width
    attention = 3 * 2 * width * width + 3 * width + 2 * 2 * width * length
    attention += (_SOFTMAX + _DROPOUT + 1) * length * num_heads
    attention += 2 * width * width + (1 + _DROPOUT + 1) * width + _LAYER_NORM
    ffn = 2 * 2 * width * inner + (_ACTIVATION + 1) * inner
    ffn += (1 + _DROPOUT + 1 + _LAYER_NORM) * width
    return attention + ffn
