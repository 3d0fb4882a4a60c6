"""Counts what a step of the engine hands to torch.distributed, on each rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from electra_dist.engine.deepspeed import DeepSpeedEngine
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.collectives import ProcessGroups
from tests.distributed.synthetic import micro_batches, tiny_config

CPU = torch.device("cpu")

# What a ring moves: bytes that a rank sends, of `size` bytes of its largest tensor, on average over
# the W ranks. NCCL's and gloo's rings agree in this.
FACTORS = {
    "allreduce_": lambda w: 2 * (w - 1) / w,
    "allreduce_coalesced_": lambda w: 2 * (w - 1) / w,
    "reduce_": lambda w: (w - 1) / w,
    "broadcast_": lambda w: (w - 1) / w,
    "_allgather_base_": lambda w: (w - 1) / w,
    "allgather_": lambda w: (w - 1) / w,
    "allgather_into_tensor_coalesced_": lambda w: (w - 1) / w,
    "_reduce_scatter_base_": lambda w: (w - 1) / w,
    "reduce_scatter_": lambda w: (w - 1) / w,
    "reduce_scatter_tensor_coalesced_": lambda w: (w - 1) / w,
}


class CollectiveCounter(TorchDispatchMode):
    """Sees every operation of this thread, also those that libraries start."""

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.world_size = world_size
        self.seen: dict[str, list[float]] = {}
        """Name of the operation to [calls, bytes of its whole tensors, bytes sent]."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d" and func._opname != "barrier":
            name = func._opname
            size = whole_bytes(args)
            calls = self.seen.setdefault(name, [0, 0, 0.0])
            calls[0] += 1
            calls[1] += size
            calls[2] += size * FACTORS[name](self.world_size)
        return func(*args, **(kwargs or {}))


def whole_bytes(args: tuple[Any, ...]) -> int:
    """Bytes of a collective's whole tensor: what is reduced, or all that is gathered."""
    sizes = []
    for argument in args[:2]:
        tensors = [leaf for leaf in tree_flatten(argument)[0] if isinstance(leaf, Tensor)]
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
    return max(sizes)


@contextmanager
def counted(world_size: int) -> Iterator[CollectiveCounter]:
    """Count the collectives of this block."""
    with CollectiveCounter(world_size) as counter:
        yield counter


def count_traffic(
    groups: ProcessGroups, variants: list[dict[str, Any]]
) -> list[dict[str, list[float]]]:
    """Of the second step of each engine; the first one also sets it up."""
    world = groups.world
    reports = []
    for variant in variants:
        config = tiny_config(**variant)
        engine = DeepSpeedEngine(JointElectra(config), config, world, CPU)
        for step in range(2):
            mine = micro_batches(config, step, world.rank, world.world_size)
            with counted(world.world_size) as counter:
                engine.step(mine, 1e-3)
        reports.append(counter.seen)
        engine.close()
    return reports


def count_reference(groups: ProcessGroups) -> float:
    """Bytes that a rank of the reference engine sends in its second step."""
    world, config = groups.world, tiny_config(kind="reference")
    engine = ReferenceEngine(JointElectra(config), config, world, CPU)
    for step in range(2):
        mine = micro_batches(config, step, world.rank, world.world_size)
        with counted(world.world_size) as counter:
            engine.step(mine, 1e-3)
    return sum(calls[2] for calls in counter.seen.values())
