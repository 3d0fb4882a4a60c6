"""Who runs which micro-batch of a step: this changes with the cluster, what is in it never does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from electra_dist.errors import UserError


class Pass(NamedTuple):
    """One of a rank's passes through the model within a step."""

    micro_batch: int
    """Index of the micro-batch within the step, the same for every world size."""
    is_real: bool
    """False for a pass that only keeps this rank in step with the others: its loss has weight 0."""


def passes(slot: int, world_size: int, num_micro_batches: int) -> list[Pass]:
    """Slot s of W runs micro-batches s, s + W, ...; all slots make ceil(M / W) passes.

    Where a slot has one micro-batch less, its last pass repeats the one before it.

    Raises:
        UserError: there are more ranks than micro-batches.
    """
    if world_size > num_micro_batches:
        raise UserError(
            f"{world_size} ranks cannot share {num_micro_batches} micro-batches a step; use at "
            f"most {num_micro_batches} ranks, or a smaller batch.micro_batch_size in a new run"
        )
    real = [Pass(index, True) for index in range(slot, num_micro_batches, world_size)]
    num_passes = -(-num_micro_batches // world_size)
    return real + [Pass(real[-1].micro_batch, False)] * (num_passes - len(real))


class Seat(NamedTuple):
    """Where a rank sits among the nodes of a run."""

    place: int
    """Number of this rank on its node."""
    node: int
    """Number of its node."""
    num_nodes: int

    def slot(self, first_lane: int) -> int:
        """The rank's slot in a step whose micro-batch 0 reads lane `first_lane`.

        Slots go round the nodes as micro-batches go round the lanes. Where one of the two counts
        divides the other, the micro-batches of a node's ranks are of its own lanes in every step.
        """
        return self.place * self.num_nodes + (self.node - first_lane) % self.num_nodes


def seat(rank: int, local_ranks: Sequence[int]) -> Seat:
    """The seat of `rank`, from the number that every rank (by rank) has on its node.

    However a launcher deals out the ranks, those with one local rank are on as many nodes, in the
    nodes' order. Nodes of unequal size have no common round: there every rank counts as one of a
    single node, and slots are ranks.
    """
    num_nodes = local_ranks.count(0)
    if any(local_ranks.count(place) != num_nodes for place in set(local_ranks)):
        return Seat(rank, 0, 1)
    place = local_ranks[rank]
    return Seat(place, local_ranks[:rank].count(place), num_nodes)
