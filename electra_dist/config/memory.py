"""Memory of a rank at the fullest moment of a step, before anything is allocated. No torch.

A step is a row of stages: a tower's embeddings, its layers, its head. Forward, each keeps tensors
for the backward pass (`activations`); backward, they are freed stage by stage while gradients come.
`_fullest` walks through that and remembers the fullest moment. What DeepSpeed holds beside it is in
`_sharded`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from electra_dist.config.accounting import padded_shapes, parameter_shapes
from electra_dist.config.activations import (
    FP32,
    Device,
    Stage,
    activation_stages,
    element_bytes,
    num_tokens,
)
from electra_dist.config.schema import RunConfig
from electra_dist.config.zero import (
    ZeroSettings,
    gathered_together,
    kept_for_backward,
    layers_are_leaves,
)

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
    sizes = {name: math.prod(shape) for name, shape in padded_shapes(config).items()}
    total, stage, size = sum(sizes.values()), config.engine.zero_stage, element_bytes(config)
    share = -(-total // world_size)
    # torch.empty: a GPU gives all of a bucket away, a CPU only the pages that are written, which
    # are none yet when the backward pass begins.
    bucket = zero.bucket_elements(total)
    state = 0 if zero.is_offloaded and device == "cuda" else FP32 * share
    if stage == 0:
        return _Held(
            weights=size * total,
            optimizer=NUM_MOMENTS * FP32 * total,
            gradients=size * total,
            as_they_come=True,
            update=size * bucket if world_size > 1 else 0,
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
    gathered = gathered_at_once(sizes, zero, leaves=layers_are_leaves(config))
    return _Held(
        weights=size * (share + gathered) + state,
        optimizer=NUM_MOMENTS * state,
        gradients=size * share,
        as_they_come=False,
        buckets=size * bucket if device == "cuda" else 0,
        update=state + size * bucket,
    )


def gathered_at_once(sizes: dict[str, int], zero: ZeroSettings, *, leaves: bool = True) -> int:
    """Elements that stage 3 has gathered when backward begins: kept ones, and two modules'."""
    kept = kept_for_backward(sizes, zero.max_reuse_distance, leaves=leaves)
    kept |= {n for n, size in sizes.items() if size <= zero.parameter_persistence_threshold}
    released = [
        sum(sizes[name] for name in names if name not in kept)
        for names in gathered_together(sizes, leaves=leaves).values()
    ]
    return sum(sizes[name] for name in kept) + sum(sorted(released)[-2:])


def _fullest(
    config: RunConfig, stages: list[Stage], held: _Held, *, is_first_pass: bool
) -> tuple[int, int]:
    """Bytes of gradients and of activations when their sum is largest, in a rank's last pass."""
    batch = BATCH_BYTES_A_TOKEN * num_tokens(config)
    before = 0 if is_first_pass else held.gradients
    kept, moments = batch, []
    for stage in stages:
        moments.append((before, kept + stage.kept + stage.forward))
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
