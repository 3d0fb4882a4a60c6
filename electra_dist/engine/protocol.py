"""What the loop asks of an engine: a step on sharded state, and a view of it by element range."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from electra_dist.data.shared_rows import share_rows
from electra_dist.data.store import Array
from electra_dist.data.stream import MicroBatch
from electra_dist.model import random
from electra_dist.model.batch import Batch, Losses
from electra_dist.runtime.world import World


@dataclass(frozen=True, kw_only=True)
class LocalResult:
    """One rank's part of a step: sums over its real micro-batches, to be added up over ranks."""

    sums: Mapping[str, float]
    """Each a sum of micro-batch means: `loss`, `generator_loss`, `discriminator_loss`,
    `replaced_share`; and the count `tokens`."""
    checksum: int
    """Sum modulo 2**64 of the checksums of the micro-batches that were given to the model."""
    grad_norm: float
    """Global norm of the joint gradient before clipping, NaN where it is not finite: the same on
    every rank."""
    micro_batch_losses: Mapping[int, float] = field(default_factory=dict)
    """Loss of each real micro-batch that this rank ran, by its index in the step."""
    squared_norms: Mapping[str, float] = field(default_factory=dict)
    """This rank's part of the squared gradient norm of each tower and of what they share, where it
    was asked for and the update was made."""


MayApply = Callable[[LocalResult], bool]
"""The question of an update: may it change weights? Every rank is asked at the same time, and all
must answer alike; it may be collective."""


def is_finite(local: LocalResult) -> bool:
    """The least that must hold, and without other ranks' losses all that can be known."""
    return math.isfinite(local.grad_norm)


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What a step needs beside data and rate. All of it is the run's: an engine remembers none."""

    num_updates: int | None = None
    """Updates of which the moments are made, for optimizers that correct their bias. None: as many
    as there were steps."""
    loss_scale: float = 1.0
    """Losses are multiplied by it before the backward pass and gradients divided by it after."""
    measures_norms: bool = False
    """Whether the result has `squared_norms`."""

    def updates_before(self, micro_batches: Sequence[MicroBatch]) -> int:
        """`num_updates`, or the number of the step, counted from 0."""
        return micro_batches[0].step if self.num_updates is None else self.num_updates


PLAIN = StepOptions()
"""A step in fp32 or bf16 of a run that left no update out."""


class Fragment(NamedTuple):
    """A contiguous range of one tensor of the training state, as this rank holds it."""

    parameter: str
    """Name in the joint module."""
    kind: str
    """`master` (fp32 weights), `exp_avg` or `exp_avg_sq`."""
    start: int
    """First element of the range within the flattened parameter."""
    values: Tensor
    """fp32, one dimension, a view: writing to it changes the engine's state."""


class Engine(Protocol):
    """DeepSpeed ZeRO, or plain PyTorch. All methods but the fragment ones are collective."""

    device: torch.device
    parameter_shapes: dict[str, tuple[int, ...]]
    """As checkpoints know them: word tables without padding (`model.padding`)."""

    @property
    def module(self) -> nn.Module:
        """The joint module with the weights that the engine computes with."""
        ...

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        learning_rate: float,
        may_apply: MayApply = is_finite,
        options: StepOptions = PLAIN,
    ) -> LocalResult:
        """Forward, backward over a rank's passes (as many on all ranks), one clip, one update.

        `may_apply` is asked once, on every rank, when gradients and their norm are known and no
        weight has changed. After a no all weights and moments are as they were, bit for bit.
        """
        ...

    def evaluate(self, batch: Batch) -> Losses:
        """A forward pass without dropout and without gradients; every rank calls it as often."""
        ...

    def local_fragments(self) -> Iterator[Fragment]:
        """Everything this rank holds, but for the padding of word tables: what a restore fills."""
        ...

    def owned_fragments(self) -> Iterator[Fragment]:
        """What this rank saves: the ranks' parts cover every element once."""
        ...

    def shared_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What every rank holds, by name, and must hold bit for bit alike between two steps."""
        ...

    def state_restored(self) -> None:
        """Bring the weights that the model computes with in line with the restored fragments."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


COMPUTED_PADDING = 1 / 16
"""Share of a micro-batch up to which padding is computed: leaving out less costs more in copies
than it saves."""


def to_batch(
    micro_batch: MicroBatch, seed: int, device: torch.device, *, keep_padding: bool = False
) -> Batch:
    """A micro-batch on `device` with its sampling noise; no attention mask where none is padded.

    Its arrays cross to the device as small as they are and are widened there. Columns that are
    padding in all rows, and slots that no row uses, are cut off. Where more than
    `COMPUTED_PADDING` is padding, short rows share one first; of what is still more, nothing is
    computed. `keep_padding` computes all, row by row: what the shorter ways are compared with.
    """
    # A multiple of 8, which tensor cores ask for.
    width, longest = micro_batch.input_ids_BL.shape[1], int(micro_batch.num_tokens_B.max(initial=1))
    length = min(width, -(-longest // 8) * 8)
    uniforms_BN: Array = random.sampling_uniforms(
        micro_batch.masked_positions_BN.shape, seed, micro_batch.step, micro_batch.index
    ).numpy()
    if not keep_padding and _padding(micro_batch, length) > COMPUTED_PADDING:
        micro_batch, uniforms_BN = share_rows(
            micro_batch, uniforms_BN, length, least_saved=COMPUTED_PADDING
        )
    num_slots = max(1, int((micro_batch.masked_weights_BN > 0).sum(axis=1).max(initial=1)))
    padding = _padding(micro_batch, length)
    mask_BL = np.arange(length) < micro_batch.num_tokens_B[:, None]

    def moved(array: Array, columns: int) -> Tensor:
        cut = np.ascontiguousarray(array[:, :columns])
        return torch.from_numpy(cut).to(device, non_blocking=True)

    blocks, positions = micro_batch.block_ids_BL, micro_batch.position_ids_BL
    return Batch(
        input_ids_BL=moved(micro_batch.input_ids_BL, length).long(),
        masked_ids_BL=moved(micro_batch.masked_ids_BL, length).long(),
        token_type_ids_BL=moved(micro_batch.token_type_ids_BL, length).long(),
        attention_mask_BL=moved(mask_BL, length) if padding else None,
        masked_positions_BN=moved(micro_batch.masked_positions_BN, num_slots).long(),
        masked_weights_BN=moved(micro_batch.masked_weights_BN, num_slots),
        uniforms_BN=moved(uniforms_BN, num_slots),
        block_ids_BL=None if blocks is None else moved(blocks, length),
        position_ids_BL=None if positions is None else moved(positions, length),
        places_T=(
            torch.from_numpy(np.flatnonzero(mask_BL)).to(device, non_blocking=True)
            if padding > COMPUTED_PADDING and not keep_padding
            else None
        ),
        step=micro_batch.step,
    )


def _padding(micro_batch: MicroBatch, length: int) -> float:
    """Share of a micro-batch's places that hold no token."""
    num_tokens_B = micro_batch.num_tokens_B
    return 1.0 - float(num_tokens_B.sum()) / max(1, len(num_tokens_B) * length)


def disturbed(losses: Losses, micro_batch: MicroBatch) -> Losses:
    """The losses of a training pass, unless a fault on purpose makes others of them."""
    if micro_batch.disturb is None:
        return losses
    wrong: Losses = micro_batch.disturb(losses)
    return wrong


class Question:
    """May this step's update change weights? Asked once, however often an optimizer steps.

    Args:
        local: this rank's part of the step; called once the gradient's norm is known.
        may_apply: who answers.
    """

    def __init__(self, local: Callable[[], LocalResult], may_apply: MayApply) -> None:
        self._local, self._may_apply = local, may_apply

    @cached_property
    def local(self) -> LocalResult:
        """This rank's part of the step."""
        return self._local()

    @cached_property
    def answer(self) -> bool:
        """The same on every rank."""
        return self._may_apply(self.local)

    def ask(self) -> bool:
        """What an optimizer calls before it changes anything."""
        return self.answer


class StepSums:
    """Adds up what a rank's real passes report; stays on the device, so no pass waits for it."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._indices: list[int] = []
        self._tokens = 0
        self._checksum = 0

    def add(self, micro_batch: MicroBatch, losses: Losses) -> None:
        """Count one pass, unless it only keeps the rank in step."""
        if micro_batch.is_real:
            self._losses.append(
                torch.stack(
                    [
                        losses.total.detach().float(),
                        losses.generator,
                        losses.discriminator,
                        losses.replaced_share,
                    ]
                )
            )
            self._indices.append(micro_batch.index)
            self._tokens += int(micro_batch.num_tokens_B.sum())
            self._checksum += micro_batch.checksum

    def result(self, grad_norm: float) -> LocalResult:
        """The sums as plain numbers, added in float64."""
        losses = torch.stack(self._losses).double()
        totals = losses.sum(dim=0).tolist()
        names = ("loss", "generator_loss", "discriminator_loss", "replaced_share")
        sums = dict(zip(names, totals, strict=True))
        return LocalResult(
            sums={**sums, "tokens": float(self._tokens)},
            checksum=self._checksum % 2**64,
            grad_norm=grad_norm if math.isfinite(grad_norm) else math.nan,
            micro_batch_losses=dict(zip(self._indices, losses[:, 0].tolist(), strict=True)),
        )


def without_padding(
    fragments: Iterable[Fragment], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Fragment]:
    """The fragments without what lies beyond `shapes`: a word table's rows of zeros at its end."""
    for fragment in fragments:
        rest = math.prod(shapes[fragment.parameter]) - fragment.start
        if rest > 0:
            yield fragment._replace(values=fragment.values[:rest])


def even_range(num_elements: int, rank: int, world_size: int) -> tuple[int, int]:
    """The part of a replicated parameter that `rank` saves: ceil(n / W) elements, the last less."""
    piece = -(-num_elements // world_size)
    return min(rank * piece, num_elements), min((rank + 1) * piece, num_elements)


def even_shares(fragments: Iterable[Fragment], world: World) -> Iterator[Fragment]:
    """What this rank saves of state that every rank holds whole."""
    for fragment in fragments:
        start, stop = even_range(len(fragment.values), world.rank, world.world_size)
        if stop > start:
            yield fragment._replace(start=start, values=fragment.values[start:stop])
