"""Bytes that a rank sends in a step, by ZeRO stage, from DeepSpeed 0.19's algorithms. No torch.

    stage 0    all-reduce of all gradients, once a step
    stage 1    gradients once a step, all-gather of the updated weights
    stage 2    gradients at every pass, all-gather of the updated weights
    stage 3    at every pass: all-gather of the weights (again in the backward pass where they were
               released), reduce-scatter of the gradients; once a step those that stay whole

Stages 1 and 2 all-reduce a bucket of gradients by default; with `use_multi_rank_bucket_allreduce`
false each part of it is reduced to its owner, which is half of that. Of n bytes a ring sends
2 (W - 1) / W n a rank for an all-reduce, and half of that for each of all-gather, reduce-scatter
and reduce (a reduce's is the mean over ranks). Norms and flags, a few bytes a step, are left out.
tests/distributed/test_traffic.py counts what a real engine hands to torch.distributed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from electra_dist.config.accounting import is_decayed, padded_shapes, parameter_shapes
from electra_dist.config.activations import element_bytes
from electra_dist.config.schema import RunConfig
from electra_dist.config.zero import ZeroSettings, kept_for_backward, layers_are_leaves

_ALIGNMENT = 2
"""Elements to which DeepSpeed aligns each rank's part of a flat group."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one rank sends in a step."""

    gradients: int
    weights: int

    @property
    def total(self) -> int:
        """Both."""
        return self.gradients + self.weights


def traffic_of_step(
    config: RunConfig, *, world_size: int, zero: ZeroSettings | None = None
) -> Traffic:
    """What a rank sends at `engine.zero_stage`, or under the reference engine.

    Args:
        config: the run.
        world_size: ranks.
        zero: settings of its DeepSpeed file; default: read them from `engine.deepspeed_config`.
    """
    zero = zero or ZeroSettings.read(config.engine.deepspeed_config)
    stage = 0 if config.engine.kind == "reference" else config.engine.zero_stage
    size, once = element_bytes(config), (world_size - 1) / world_size
    num_passes = -(-config.batch.num_micro_batches // world_size)
    sizes = {name: math.prod(shape) for name, shape in padded_shapes(config).items()}
    gradients = size * sum(sizes.values())
    if stage == 0:
        return Traffic(gradients=round(2 * once * gradients), weights=0)
    if stage in (1, 2):
        gradients *= 2 if zero.use_multi_rank_bucket_allreduce else 1
        gradients *= num_passes if stage == 2 else 1
        weights = size * sum(padded_groups(sizes, world_size))
        return Traffic(gradients=round(once * gradients), weights=round(once * weights))
    whole = {n: -(-s // world_size) * world_size for n, s in sizes.items()}
    large = {n: s for n, s in whole.items() if sizes[n] > zero.parameter_persistence_threshold}
    kept = kept_for_backward(sizes, zero.max_reuse_distance, leaves=layers_are_leaves(config))
    again = sum(size for name, size in large.items() if name not in kept)
    persistent = sum(whole.values()) - sum(large.values())
    gathered = num_passes * (sum(large.values()) + again) + persistent
    return Traffic(
        gradients=round(once * size * num_passes * sum(whole.values())),
        weights=round(once * size * gathered),
    )


def padded_groups(sizes: dict[str, int], world_size: int) -> list[int]:
    """Elements of DeepSpeed's two flat groups (decayed, plain) at stages 1 and 2."""
    groups = [[n for n in sizes if is_decayed(n)], [n for n in sizes if not is_decayed(n)]]
    piece = _ALIGNMENT * world_size
    return [-(-sum(sizes[name] for name in group) // piece) * piece for group in groups]


def sharded_ranges(config: RunConfig, *, world_size: int, rank: int) -> list[tuple[str, int, int]]:
    """(parameter, first element, one past the last) of what `rank` saves.

    Its part of each flat group at stages 1 and 2, else an even piece of every parameter; of either
    what is no padding of a word table.
    """
    saved = {name: math.prod(shape) for name, shape in parameter_shapes(config).items()}
    held = {name: math.prod(shape) for name, shape in padded_shapes(config).items()}
    stage = 0 if config.engine.kind == "reference" else config.engine.zero_stage
    if stage in (1, 2):
        ranges = _flat_ranges(held, world_size, rank)
    else:
        sizes = held if stage == 3 else saved
        pieces = {name: -(-size // world_size) for name, size in sizes.items()}
        ranges = [(name, rank * piece, (rank + 1) * piece) for name, piece in pieces.items()]
    cut = [(name, min(first, saved[name]), min(last, saved[name])) for name, first, last in ranges]
    return [one for one in cut if one[2] > one[1]]


def _flat_ranges(sizes: dict[str, int], world_size: int, rank: int) -> list[tuple[str, int, int]]:
    """A rank's part of the flat groups of stages 1 and 2."""
    found = {}
    decayed, plain = padded_groups(sizes, world_size)
    for padded, wanted in ((decayed, True), (plain, False)):
        piece, offset = padded // world_size, 0
        for name in (n for n in sizes if is_decayed(n) is wanted):
            first = max(rank * piece - offset, 0)
            last = min((rank + 1) * piece - offset, sizes[name])
            if last > first:
                found[name] = (name, first, last)
            offset += sizes[name]
    return [found[name] for name in sizes if name in found]
