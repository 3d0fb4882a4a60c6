"""From the state of a run to its next micro-batches: the one stateful file of the data layer.

Its only state is a look-ahead: a background thread assembles the next steps while the engine
computes. What a micro-batch holds is a function of (seed, position) and of the corpus, so nothing
here is ever saved.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from electra_dist.config.schema import RunConfig
from electra_dist.data.masking import MaskRule, mask_rows
from electra_dist.data.order import Order
from electra_dist.data.rows import RowReader
from electra_dist.data.store import Array, Corpus, Packing
from electra_dist.errors import UserError

_ORDER_CHUNK = 4096


class Pass(NamedTuple):
    """One of a rank's passes through the model within a step."""

    micro_batch: int
    """Index of the micro-batch within the step, the same for every world size."""
    is_real: bool
    """False for a pass that only keeps this rank in step with the others: its loss has weight 0."""


def passes(rank: int, world_size: int, num_micro_batches: int) -> list[Pass]:
    """Rank r runs micro-batches r, r + W, ...; all ranks make ceil(M / W) passes.

    Where a rank has one micro-batch less, its last pass repeats the one before it.

    Raises:
        UserError: there are more ranks than micro-batches.
    """
    if world_size > num_micro_batches:
        raise UserError(
            f"{world_size} ranks cannot share {num_micro_batches} micro-batches a step; use at "
            f"most {num_micro_batches} ranks, or a smaller batch.micro_batch_size in a new run"
        )
    real = [Pass(index, True) for index in range(rank, num_micro_batches, world_size)]
    num_passes = -(-num_micro_batches // world_size)
    return real + [Pass(real[-1].micro_batch, False)] * (num_passes - len(real))


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The rows of one forward pass, with what keys their dropout and noise.

    Shapes: B rows, L positions, N masked slots of a row.
    """

    step: int
    """Update number, counted from 0."""
    index: int
    """Micro-batch within the step."""
    is_real: bool
    """False: a repeated pass whose loss has weight 0."""
    input_ids_BL: NDArray[np.int64]
    masked_ids_BL: NDArray[np.int64]
    token_type_ids_BL: NDArray[np.int64]
    num_tokens_B: NDArray[np.int64]
    masked_positions_BN: NDArray[np.int64]
    masked_weights_BN: NDArray[np.float32]
    block_ids_BL: NDArray[np.int16] | None = None
    """Packed rows only: 1, 2 ... for the documents of a row, 0 for padding."""
    position_ids_BL: NDArray[np.int32] | None = None
    """Packed rows only: positions, from 0 in every block."""

    @cached_property
    def checksum(self) -> int:
        """xxh3-64 of the tensors that the engine is given: the ledger adds them up over a step."""
        digest = xxhash.xxh3_64(self.index.to_bytes(8, "little"))
        arrays: tuple[Array | None, ...] = (
            self.input_ids_BL,
            self.masked_ids_BL,
            self.token_type_ids_BL,
            self.num_tokens_B,  # the attention mask follows from it
            self.masked_positions_BN,
            self.masked_weights_BN,
            self.block_ids_BL,
            self.position_ids_BL,
        )
        for array in arrays:
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.intdigest()


class CorpusStream:
    """Micro-batches of a packed corpus, masked, for one rank.

    Args:
        config: `data`, `batch`, `objective` and `seed` decide everything.
        corpus: the token store that `data.corpus` names.
        rank: this rank; `world_size` ranks share the micro-batches of a step.

    Raises:
        UserError: the corpus is not packed at this length, is empty, or has fewer micro-batches
            than ranks.
    """

    def __init__(
        self, config: RunConfig, corpus: Corpus, rank: int = 0, world_size: int = 1
    ) -> None:
        data = config.data
        packing = Packing.open(corpus, data.sequence_length, data.packing)
        if packing.num_examples == 0:
            raise UserError(f"{packing.folder} holds no examples; build the corpus from more text")
        special = corpus.special_ids
        self._batch = config.batch
        objective = config.objective
        self._reader = RowReader(
            corpus, packing, "train", word_starts=objective.masking == "whole_word"
        )
        self.order = Order(
            seed=config.seed,
            num_samples=packing.num_examples,
            block_size=data.shuffle_block_size,
            window_blocks=data.shuffle_window_blocks,
        )
        self._rule = MaskRule(
            seed=config.seed,
            mask_prob=objective.mask_prob,
            max_masked=config.max_masked,
            mask_id=special.mask,
            never=(special.cls, special.sep, special.mask),
            masking=objective.masking,
            mean_span_length=objective.mean_span_length,
        )
        self._passes = passes(rank, world_size, config.batch.num_micro_batches)
        self._prefetch_steps = data.prefetch_steps
        self._chunk: tuple[int, NDArray[np.int64]] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream")
        self._ahead: dict[tuple[int, int], Future[list[MicroBatch]]] = {}

    def micro_batches(self, step: int, first_position: int) -> list[MicroBatch]:
        """This rank's passes of update `step`, whose samples start at global `first_position`."""
        wanted = [
            (step + i, first_position + i * self._batch.global_batch_size)
            for i in range(self._prefetch_steps + 1)
        ]
        # A roll-back or a seek makes what was assembled ahead useless: drop all that is not wanted
        # now.
        self._ahead = {key: future for key, future in self._ahead.items() if key in wanted}
        for key in wanted:
            if key not in self._ahead:
                self._ahead[key] = self._thread.submit(self._assemble_step, *key)
        return self._ahead.pop(wanted[0]).result()

    def micro_batch(
        self, step: int, index: int, first_position: int, *, is_real: bool = True
    ) -> MicroBatch:
        """Rows and masks of micro-batch `index` of the step that starts at `first_position`."""
        size = self._batch.micro_batch_size
        positions = np.arange(size, dtype=np.int64) + (first_position + index * size)
        rows = self._reader.read(self._sample_ids(positions))
        masks = mask_rows(
            rows.input_ids_BL, rows.num_tokens_B, positions, self._rule, rows.word_start_BL
        )
        return MicroBatch(
            step=step,
            index=index,
            is_real=is_real,
            input_ids_BL=rows.input_ids_BL,
            masked_ids_BL=masks.masked_ids_BL,
            token_type_ids_BL=rows.token_type_ids_BL,
            num_tokens_B=rows.num_tokens_B,
            masked_positions_BN=masks.positions_BN,
            masked_weights_BN=masks.weights_BN,
            block_ids_BL=rows.block_ids_BL,
            position_ids_BL=rows.position_ids_BL,
        )

    def _sample_ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids at consecutive `positions`, cut from an aligned chunk where one covers them.

        A permutation of 4096 positions at once costs 3 times one of 256: the price of a batch is
        mostly that of calling numpy.
        """
        first, last = int(positions[0]), int(positions[-1])
        start = first - first % _ORDER_CHUNK
        if last >= start + _ORDER_CHUNK:
            return self.order.sample_ids(positions)
        chunk = self._chunk
        if chunk is None or chunk[0] != start:
            chunk_positions = np.arange(start, start + _ORDER_CHUNK, dtype=np.int64)
            chunk = self._chunk = (start, self.order.sample_ids(chunk_positions))
        return chunk[1][first - start : last + 1 - start]

    def close(self) -> None:
        """End the background thread; what it was assembling is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _assemble_step(self, step: int, first_position: int) -> list[MicroBatch]:
        micro_batches = [
            self.micro_batch(step, one.micro_batch, first_position, is_real=one.is_real)
            for one in self._passes
        ]
        for micro_batch in micro_batches:
            _ = micro_batch.checksum  # hashed here, while the engine computes
        return micro_batches
