"""What a pass keeps for its backward pass, stage by stage. No torch.

Each line of `_layer`, `_embeddings` or `_head` is one tensor that autograd holds; a test compares
their sum with autograd's own for every recipe (tests/unit/config/test_memory.py).

Letters, numbers of elements a token unless said otherwise: D width of a tower, E embedding width,
H heads, L positions; V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from electra_dist.config.accounting import Tower, padded_shapes, towers, vocab_size
from electra_dist.config.schema import RunConfig

Device = Literal["cpu", "cuda"]

FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a pass over one micro-batch, in bytes."""

    kept: int
    """Held from its forward to its backward pass."""
    forward: int = 0
    """On top, at the fullest moment of its forward pass."""
    backward: int = 0
    """On top of what is still kept, at the fullest moment of its backward pass."""
    gradients: int = 0
    """Of its own weights."""
    table_gradient: int = 0
    """Of the word table that its backward pass makes a dense gradient of."""


def activation_stages(config: RunConfig, device: Device) -> list[Stage]:
    """The stages of a pass of the joint module over one micro-batch, in forward order."""
    stages = []
    shapes, size = padded_shapes(config), element_bytes(config)
    for tower in towers(config):
        # An encoder of its own stands under the tower's name, a shared one at the root.
        encoder = (
            f"{tower.name}.{tower.encoders[0]}" if config.model.untied_generator else "encoder"
        )
        project, layer, head = (
            size * sum(math.prod(s) for name, s in shapes.items() if name.startswith(prefix))
            for prefix in (
                f"{encoder}.embeddings_",
                f"{encoder}.layers.{tower.num_layers - 1}.",
                f"{tower.name}.head.",
            )
        )
        num_encoders = len(tower.encoders)
        stages.append(_embeddings(config, tower, device, num_encoders * project))
        layers = [_layer(config, tower, device, layer)] * (num_encoders * tower.num_layers)
        if config.model.backbone == "modern":
            layers[0] = _without_first_norm(config, tower, layers[0])
        stages += layers
        stages.append(_head(config, tower, head))
    return stages


def element_bytes(config: RunConfig) -> int:
    """Of weights, gradients and activations."""
    return FP32 if config.engine.precision == "fp32" else 2


def _embeddings(config: RunConfig, tower: Tower, device: Device, gradients: int) -> Stage:
    width, tokens = tower.embedding_size, num_tokens(config)
    if config.model.backbone == "modern":
        elements = width if tower.width != width else 0  # the projection's input
        width = tower.width  # norm and dropout stand behind the projection
        elements += 2 * width  # the norm's input; dropped: the residual stream
    else:
        elements = width  # sum of the three tables: LayerNorm's input
        elements += width  # dropped: the input of the projections or the first layers
        elements += len(tower.encoders) * tower.width if tower.width != width else 0  # projected
    kept = elements * element_bytes(config) + 2 * FP32  # mean and deviation
    kept += width * _mask_bytes(config, device, config.model.hidden_dropout)
    kept *= tokens
    kept += len(tower.encoders) * _masks(config, device)
    if config.model.backbone == "modern":  # cosines and sines of both kinds of layers
        head_width = tower.width // tower.num_heads
        rows = config.batch.micro_batch_size if config.data.packing == "packed" else 1
        kept += 2 * rows * config.data.sequence_length * head_width * element_bytes(config)
    return Stage(kept=kept, gradients=gradients, table_gradient=_table_bytes(config, tower))


def _masks(config: RunConfig, device: Device) -> int:
    """Of packed rows: what a query may read, L numbers a token for all layers of a kind.

    Rows that short documents of other corpora share have masks too, but are fewer.
    """
    is_kept = _is_fused(config, device) or config.engine.activation_checkpointing
    if config.data.packing != "packed" or not is_kept:
        return 0
    kinds = 2 if config.model.backbone == "modern" else 1
    return kinds * num_tokens(config) * config.data.sequence_length * element_bytes(config)


def _is_fused(config: RunConfig, device: Device) -> bool:
    """Whether attention is torch's own, which keeps its mask."""
    return device == "cuda" or config.model.attention_dropout == 0


def _layer(config: RunConfig, tower: Tower, device: Device, gradients: int) -> Stage:
    width, tokens, size = tower.width, num_tokens(config), element_bytes(config)
    weights_a_token = tower.num_heads * config.data.sequence_length
    elements = 3 * width  # queries, keys, values
    elements += width  # context
    is_fused = _is_fused(config, device)
    if is_fused:
        extra = tower.num_heads * FP32  # logarithm of the softmax's denominator
    else:
        elements += 2 * weights_a_token  # attention weights, before and after dropout
        elements += width if tower.num_heads > 1 else 0  # context, heads side by side
        extra = 0
    elements += width  # LayerNorm's input
    elements += width  # its output, the input of ffn_in
    inner = config.model.inner_width(width)
    # Before and after GELU; modern: both halves, the gate's product too.
    elements += (4 if config.model.backbone == "modern" else 2) * inner
    elements += width  # LayerNorm's input; modern: the output of the first norm
    output = width  # its output, the input of what follows
    extra += 2 * 2 * FP32  # mean and deviation of two LayerNorms
    extra += 2 * width * _mask_bytes(config, device, config.model.hidden_dropout)
    inside = tokens * (elements * size + extra)
    # ffn_out's gradient stands beside all that is kept; in attention's, thirteen tensors of the
    # layer are gone, scores and the gradients of queries, keys and values have come.
    backward = tokens * size * max(inner, 0 if is_fused else weights_a_token - 5 * width)
    output *= tokens * size
    if config.engine.activation_checkpointing:
        return Stage(kept=output, backward=inside + backward, gradients=gradients)
    return Stage(kept=inside + output, backward=backward, gradients=gradients)


def _without_first_norm(config: RunConfig, tower: Tower, layer: Stage) -> Stage:
    """modern: the first layer reads the embeddings, which are normed already."""
    less = num_tokens(config) * (tower.width * element_bytes(config) + 2 * FP32)
    if config.engine.activation_checkpointing:
        return replace(layer, backward=layer.backward - less)
    return replace(layer, kept=layer.kept - less)


def _head(config: RunConfig, tower: Tower, gradients: int) -> Stage:
    size = element_bytes(config)
    is_modern = config.model.backbone == "modern"
    if not tower.makes_logits:
        kept = 2 * tower.width * size  # before and after GELU
        if is_modern:  # of the last layer's norm, of the head's, their means and deviations
            kept += 2 * tower.width * size + 4 * FP32
        kept += 3 * FP32  # logit, label, loss
        tokens = num_tokens(config)
        return Stage(kept=tokens * kept, backward=tokens * tower.width * size, gradients=gradients)
    slots, logits = config.batch.micro_batch_size * config.max_masked, table_rows(config)
    everywhere = tower.makes_logits_everywhere
    places = num_tokens(config) if everywhere else slots
    inputs = len(tower.encoders) * tower.width
    kept = places * ((inputs + 3 * tower.embedding_size) * size + 2 * FP32)
    if is_modern:  # head as wide as the tower; the last layer's norm, its mean and deviation
        projected = tower.embedding_size if tower.embedding_size != tower.width else 0
        kept = places * ((4 * tower.width + projected) * size + 2 * FP32)
        kept += num_tokens(config) * (tower.width * size + 2 * FP32)
    kept += places * logits * FP32  # probabilities
    softmax = places * logits * _cast_bytes(config)
    beside = FP32 if everywhere else _sampling_bytes(config)  # electric: a copy to sample from
    return Stage(
        kept=kept,
        forward=places * logits * size + max(softmax, slots * logits * beside),  # logits first
        gradients=gradients,
        table_gradient=_table_bytes(config, tower),
    )


def _cast_bytes(config: RunConfig) -> int:
    """Before a softmax in fp32 torch copies half precision to fp32 (but not fp16 on CUDA)."""
    return FP32 if element_bytes(config) < FP32 else 0


def _sampling_bytes(config: RunConfig) -> int:
    """Beside logits and their softmax, an id and slot, while replacements are drawn."""
    objective = config.objective
    is_tempered = (objective.temperature, objective.temperature_end) != (1.0, None)
    are_others = objective.disallow_correct or not objective.sampling_dropout
    if not are_others and not is_tempered:
        return 0
    scaled = FP32 if is_tempered else _cast_bytes(config)
    return are_others * element_bytes(config) + scaled + FP32  # the last: a softmax of their own


def _table_bytes(config: RunConfig, tower: Tower) -> int:
    return element_bytes(config) * table_rows(config) * tower.embedding_size


def table_rows(config: RunConfig) -> int:
    """Of a word table with its padding: as many logits are made a slot."""
    return config.model.padded(vocab_size(config))


def num_tokens(config: RunConfig) -> int:
    """Places of a micro-batch."""
    return config.batch.micro_batch_size * config.data.sequence_length


def _mask_bytes(config: RunConfig, device: Device, dropout: float) -> int:
    """Bytes an element of a kept dropout mask: torch's fused kernel keeps booleans."""
    if dropout == 0:
        return 0
    return 1 if device == "cuda" else element_bytes(config)
