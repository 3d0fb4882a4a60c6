"""Memory of a rank at the fullest moment of a step, before anything is allocated. No torch.

A step is a row of stages: a tower's embeddings, its layers, its head. Forward, each keeps tensors
for the backward pass; backward, they are freed stage by stage while gradients come. `_fullest`
walks through that and remembers the fullest moment.

Who changes what the model keeps changes `_layer`, `_embeddings` or `_head` here: each line there is
one tensor that autograd holds, and a test compares their sum with autograd's own for every recipe
(tests/unit/config/test_memory.py). What DeepSpeed holds beside it is in `_shards`.

Letters, numbers of elements a token unless said otherwise: D width of a tower, E embedding width,
H heads, L positions; V vocabulary; P parameters; W ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from electra_dist.config.accounting import (
    Tower,
    padded_shapes,
    parameter_shapes,
    towers,
    vocab_size,
)
from electra_dist.config.schema import RunConfig
from electra_dist.config.zero import ZeroSettings

Device = Literal["cpu", "cuda"]

FP32 = 4
NUM_MOMENTS = 2
BUFFER_SETS = 2
"""Saves in flight (`checkpoint.async_writer.MAX_IN_FLIGHT`), each with its own host buffers."""
BATCH_BYTES_A_TOKEN = 5 * 8
"""int64 a place: the row, the masked row, types, the corrupted row, labels and counts."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank by kind, all at the fullest moment of a step."""

    weights: int
    """What the model computes with, and fp32 masters where they are apart."""
    gradients: int
    optimizer: int
    """Adam's two moments."""
    activations: int
    """Kept for the backward pass, with what the operation at that moment works on."""
    buckets: int
    """DeepSpeed's flat buffers for communication."""
    checkpoint_buffers: int
    """Host memory (pinned beside a GPU) that a save copies into."""

    @property
    def device_total(self) -> int:
        """All but the buffers of saves, which lie in host memory."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buckets

    @property
    def total(self) -> int:
        """With the buffers of saves: what a rank on a CPU holds."""
        return self.device_total + self.checkpoint_buffers


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
    width, tokens = tower.embedding_size, _tokens(config)
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
    if config.model.backbone == "modern":  # cosines and sines of both kinds of layers, for one row
        head_width = tower.width // tower.num_heads
        kept += 2 * config.data.sequence_length * head_width * element_bytes(config)
    return Stage(kept=kept, gradients=gradients, table_gradient=_table_bytes(config, tower))


def _layer(config: RunConfig, tower: Tower, device: Device, gradients: int) -> Stage:
    width, tokens, size = tower.width, _tokens(config), element_bytes(config)
    weights_a_token = tower.num_heads * config.data.sequence_length
    elements = 3 * width  # queries, keys, values
    elements += width  # context
    is_fused = device == "cuda" or config.model.attention_dropout == 0
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
    less = _tokens(config) * (tower.width * element_bytes(config) + 2 * FP32)
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
        tokens = _tokens(config)
        return Stage(kept=tokens * kept, backward=tokens * tower.width * size, gradients=gradients)
    slots, logits = config.batch.micro_batch_size * config.max_masked, _rows(config)
    everywhere = tower.makes_logits_everywhere
    places = _tokens(config) if everywhere else slots
    inputs = len(tower.encoders) * tower.width
    kept = places * ((inputs + 3 * tower.embedding_size) * size + 2 * FP32)
    if is_modern:  # head as wide as the tower; the last layer's norm, its mean and deviation
        projected = tower.embedding_size if tower.embedding_size != tower.width else 0
        kept = places * ((4 * tower.width + projected) * size + 2 * FP32)
        kept += _tokens(config) * (tower.width * size + 2 * FP32)
    kept += places * logits * FP32  # probabilities
    kept += slots * logits * FP32  # their logarithms at masked slots, which evaluation reads
    forward = places * logits * size  # the logits themselves
    if everywhere:
        forward += (places + slots) * logits * FP32  # all logarithms; a copy to sample from
    return Stage(
        kept=kept,
        forward=max(forward, slots * logits * _sampling_bytes(config)),
        gradients=gradients,
        table_gradient=_table_bytes(config, tower),
    )


def _sampling_bytes(config: RunConfig) -> int:
    """Beside probabilities and their logarithms, an id and slot, while replacements are drawn."""
    objective, copies = config.objective, 0
    if objective.disallow_correct:
        copies = 3  # without the original; over the temperature; their softmax
    elif (objective.temperature, objective.temperature_end) != (1.0, None):
        copies = 2
    if objective.sampling_dropout:
        return copies * FP32
    return (2 + copies) * FP32 + element_bytes(config)  # of a second pass, with its logits


def _table_bytes(config: RunConfig, tower: Tower) -> int:
    return element_bytes(config) * _rows(config) * tower.embedding_size


def _rows(config: RunConfig) -> int:
    """Of a word table with its padding: as many logits are made a slot."""
    return config.model.padded(vocab_size(config))


def _tokens(config: RunConfig) -> int:
    return config.batch.micro_batch_size * config.data.sequence_length


def _mask_bytes(config: RunConfig, device: Device, dropout: float) -> int:
    """Bytes an element of a kept dropout mask: torch's fused kernel keeps booleans."""
    if dropout == 0:
        return 0
    return 1 if device == "cuda" else element_bytes(config)


# --------------------------------------------------------------------------------- a whole rank


def memory_of_rank(
    config: RunConfig, *, world_size: int, device: Device, zero: ZeroSettings | None = None
) -> Memory:
    """What one rank holds at the fullest moment of a step of `config.engine`.

    Args:
        config: the run.
        world_size: ranks that share the state.
        device: what it computes on: attention and dropout keep less on a GPU.
        zero: settings of its DeepSpeed file; default: read them from `engine.deepspeed_config`.
    """
    zero = zero or ZeroSettings.read(config.engine.deepspeed_config)
    num_passes = -(-config.batch.num_micro_batches // world_size)
    held = (
        _replicated(config, world_size)
        if config.engine.kind == "reference"
        else _sharded(config, zero, world_size, device)
    )
    stages = activation_stages(config, device)
    gradients, activations = _fullest(config, stages, held, is_first_pass=num_passes == 1)
    if config.optim.name == "lamb":  # holds a shard's whole update until it knows the norms
        held = replace(held, update=held.update + held.optimizer // NUM_MOMENTS)
    buckets, during_update = held.buckets, held.gradients + held.update
    if during_update > gradients + activations + buckets:
        # Little was computed at once: the update is the fullest moment.
        gradients, activations, buckets = held.gradients, 0, held.update
    saved = sum(map(math.prod, parameter_shapes(config).values()))
    share = FP32 * (1 + NUM_MOMENTS) * saved // world_size
    return Memory(
        weights=held.weights,
        gradients=gradients,
        optimizer=held.optimizer,
        activations=activations,
        buckets=buckets,
        checkpoint_buffers=BUFFER_SETS * share if config.checkpoint.asynchronous else 0,
    )


@dataclass(frozen=True, kw_only=True)
class _Held:
    """What an engine holds beside activations, in bytes."""

    weights: int
    optimizer: int
    gradients: int
    """Between passes, and while the update is made."""
    as_they_come: bool
    """Whether a gradient stays where the backward pass made it: then it grows stage by stage."""
    buckets: int = 0
    """While passes run."""
    update: int = 0
    """Beside weights, optimizer and gradients while gradients are reduced and applied."""


def _replicated(config: RunConfig, world_size: int) -> _Held:
    """The reference engine: everything on every rank, gradients summed in one flat tensor.

    In half precision the model computes with copies, whose gradients are added to fp32 ones.
    """
    total = sum(map(math.prod, padded_shapes(config).values()))
    size = element_bytes(config)
    copies = 0 if size == FP32 else size * total
    return _Held(
        weights=FP32 * total + copies,
        optimizer=FP32 * NUM_MOMENTS * total,
        gradients=FP32 * total,
        as_they_come=copies == 0,
        update=max(copies, FP32 * total if world_size > 1 else 0),
    )


def _sharded(config: RunConfig, zero: ZeroSettings, world_size: int, device: Device) -> _Held:
    """DeepSpeed's engine (0.19.8, read and measured at one rank on a CPU)."""
    sizes = [math.prod(shape) for shape in padded_shapes(config).values()]
    total, stage, size = sum(sizes), config.engine.zero_stage, element_bytes(config)
    share = -(-total // world_size)
    # torch.empty: a GPU gives all of a bucket away, a CPU only the pages that are written, which
    # are none yet when the backward pass begins.
    bucket = zero.reduce_bucket_size if device == "cuda" else min(total, zero.reduce_bucket_size)
    state = 0 if zero.is_offloaded and device == "cuda" else FP32 * share
    if stage == 0:
        return _Held(
            weights=size * total,
            optimizer=NUM_MOMENTS * FP32 * total,
            gradients=size * total,
            as_they_come=True,
            update=size * min(total, zero.reduce_bucket_size) if world_size > 1 else 0,
        )
    if stage in (1, 2):
        num_buffers = (2 if zero.overlap_comm else 1) if zero.contiguous_gradients else 0
        return _Held(
            weights=size * total + state,
            optimizer=NUM_MOMENTS * state,
            gradients=size * total if stage == 1 else size * share,
            as_they_come=stage == 1,
            buckets=num_buffers * size * bucket if device == "cuda" else 0,
            update=state + num_buffers * size * bucket,
        )
    persistent = sum(n for n in sizes if n < zero.parameter_persistence_threshold)
    gathered = total if zero.max_reuse_distance > 2 * total else persistent + 2 * max(sizes)
    return _Held(
        weights=size * (share + min(total, gathered)) + state,
        optimizer=NUM_MOMENTS * state,
        gradients=size * share,
        as_they_come=False,
        buckets=size * bucket if device == "cuda" else 0,
        update=state + size * bucket,
    )


def _fullest(
    config: RunConfig, stages: list[Stage], held: _Held, *, is_first_pass: bool
) -> tuple[int, int]:
    """Bytes of gradients and of activations when their sum is largest, in a rank's last pass."""
    batch = BATCH_BYTES_A_TOKEN * _tokens(config)
    # The results of the pass before live until this one's are there.
    earlier = 0
    if not is_first_pass and any(tower.makes_logits for tower in towers(config)):
        earlier = FP32 * config.batch.micro_batch_size * config.max_masked * _rows(config)
    before = 0 if is_first_pass else held.gradients
    kept, moments = batch, []
    for stage in stages:
        moments.append((before, kept + stage.kept + stage.forward + earlier))
        kept += stage.kept
    grown = before
    for stage in reversed(stages):
        own = stage.gradients + stage.table_gradient
        if held.as_they_come and is_first_pass:
            grown = min(held.gradients, grown + own)
            moments.append((grown, kept + stage.backward))
        else:  # made beside what is there, and added to it
            moments.append((grown, kept + stage.backward + own))
        kept -= stage.kept
    return max(moments, key=sum)
