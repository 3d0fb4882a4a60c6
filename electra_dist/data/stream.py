"""From the state of a run to its next micro-batches: the one stateful file of the data layer.

Its only state is a look-ahead: a background thread assembles the next steps while the engine
computes. What a micro-batch holds is a function of (seed, position) and of the corpora, so nothing
here is ever saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from electra_dist.config.schema import RunConfig
from electra_dist.data.corpora import Corpora
from electra_dist.data.masking import MaskRule, mask_rows
from electra_dist.data.order import Skips, unskipped
from electra_dist.data.passes import Pass, Seat, passes, seat
from electra_dist.data.rows import Ids
from electra_dist.data.store import Array, Corpus

_CHUNK = 4096
_ROWS_AT_ONCE = 256
"""Micro-batches of a step that are assembled together, in rows: numpy's calls cost as much for 32
rows as their arithmetic does for 100, and beyond 256 the arrays leave the processor's cache."""
_KEPT_CHUNKS = 64
"""Chunks of the order that are kept, one a lane that this rank reads: 32 KB each."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The rows of one forward pass, with what keys their dropout and noise.

    Arrays are as small as their numbers allow, and widened on the device.
    Shapes: B rows, L positions, N masked slots of a row.
    """

    step: int
    """Update number, counted from 0."""
    index: int
    """Micro-batch within the step."""
    is_real: bool
    """False: a repeated pass whose loss has weight 0."""
    input_ids_BL: Ids
    masked_ids_BL: Ids
    token_type_ids_BL: NDArray[np.uint8]
    num_tokens_B: NDArray[np.int64]
    masked_positions_BN: NDArray[np.uint16]
    masked_weights_BN: NDArray[np.float32]
    block_ids_BL: NDArray[np.int16] | None = None
    """Rows that documents share: 1, 2 ... for these, 0 for padding. From a corpus: packed rows."""
    position_ids_BL: NDArray[np.int32] | None = None
    """Where there are blocks: positions, from 0 in every one."""
    disturb: Callable[[Any], Any] | None = None
    """A fault on purpose: what becomes of the losses of its forward pass."""

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
    """Micro-batches of one corpus, or of a blend of several, masked, for one rank.

    Args:
        config: `data`, `batch`, `objective` and `seed` decide everything.
        corpus: what `data.corpus` or `data.blend` names, opened.
        rank: this rank; `world_size` ranks share the micro-batches of a step.
        local_ranks: number of each rank, by rank, on its node; left out, all are on one node. It
            matters for `data.num_lanes` > 1 only, and only for who runs which micro-batch.

    Raises:
        UserError: the corpus is not packed at this length, is empty, has fewer rows than there are
            lanes, or fewer micro-batches than ranks.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus | Corpora,
        rank: int = 0,
        world_size: int = 1,
        local_ranks: Sequence[int] | None = None,
    ) -> None:
        corpora = corpus if isinstance(corpus, Corpora) else Corpora.of(config.data, [corpus])
        passes(rank, world_size, config.batch.num_micro_batches)
        self._batch = config.batch
        self._reader = corpora.reader(word_starts=config.objective.masking == "whole_word")
        self.order = corpora.order(config)
        self._rule = MaskRule.of(config, corpora.first.special_ids)
        self._skips = config.data.skips
        self._world_size = world_size
        self._seat = Seat(rank, 0, 1)
        if local_ranks is not None and config.data.num_lanes > 1:
            self._seat = seat(rank, local_ranks)
        self._prefetch_steps = config.data.prefetch_steps
        self._chunk = lru_cache(maxsize=_KEPT_CHUNKS)(self._lane_chunk)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream")
        self._ahead: dict[tuple[int, int, Skips], Future[list[MicroBatch]]] = {}

    def micro_batches(
        self, step: int, first_position: int, skips: Skips | None = None
    ) -> list[MicroBatch]:
        """This rank's passes of update `step`.

        Args:
            step: update number, counted from 0.
            first_position: of the step's samples, counting the used positions only.
            skips: intervals of positions that are not used (default: `data.skips`).
        """
        skips = self._skips if skips is None else skips
        wanted = [
            (step + i, first_position + i * self._batch.global_batch_size, skips)
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
        self,
        step: int,
        index: int,
        first_position: int,
        *,
        is_real: bool = True,
        skips: Skips | None = None,
    ) -> MicroBatch:
        """Rows and masks of micro-batch `index` of the step that starts at `first_position`."""
        return self._assemble(step, [Pass(index, is_real)], first_position, skips)[0]

    def passes(self, first_position: int, skips: Skips | None = None) -> list[Pass]:
        """Which micro-batches of the step at `first_position` this rank runs."""
        slot = self._seat.slot(self.first_lane(first_position, skips))
        return passes(slot, self._world_size, self._batch.num_micro_batches)

    def first_lane(self, first_position: int, skips: Skips | None = None) -> int:
        """The lane that micro-batch 0 of the step at `first_position` reads."""
        lanes, _ = self.order.lanes(self.positions(0, first_position, skips)[:1])
        return int(lanes[0])

    def positions(
        self, index: int, first_position: int, skips: Skips | None = None
    ) -> NDArray[np.int64]:
        """Positions, skipped ones counted, of micro-batch `index` of the step there: int64 [B]."""
        size = self._batch.micro_batch_size
        used = np.arange(size, dtype=np.int64) + (first_position + index * size)
        return unskipped(used, self._skips if skips is None else skips)

    def sample_ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row ids at the rising `positions` of a micro-batch: int64 [B].

        They are cut from an aligned chunk of their lane where one covers them. A permutation of
        4096 positions at once costs 2 to 3 times one of 256: most of the price of a batch is that
        of calling numpy.
        """
        lanes, lane_positions = self.order.lanes(positions)
        first, last = int(lane_positions[0]), int(lane_positions[-1])
        start = first - first % _CHUNK
        is_run = last - first == len(positions) - 1 and lanes[0] == lanes[-1]
        if not is_run or last >= start + _CHUNK or not (lanes == lanes[0]).all():
            return self.order.sample_ids(positions)
        return self._chunk(int(lanes[0]), start)[first - start : last + 1 - start]

    def _lane_chunk(self, lane: int, start: int) -> NDArray[np.int64]:
        return self.order.lane_ids(lane, np.arange(start, start + _CHUNK, dtype=np.int64))

    def close(self) -> None:
        """End the background thread; what it was assembling is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _assemble_step(self, step: int, first_position: int, skips: Skips) -> list[MicroBatch]:
        own = self.passes(first_position, skips)
        together = max(1, _ROWS_AT_ONCE // self._batch.micro_batch_size)
        micro_batches = [
            micro_batch
            for start in range(0, len(own), together)
            for micro_batch in self._assemble(
                step, own[start : start + together], first_position, skips
            )
        ]
        for micro_batch in micro_batches:
            _ = micro_batch.checksum  # hashed here, while the engine computes
        return micro_batches

    def _assemble(
        self, step: int, own: Sequence[Pass], first_position: int, skips: Skips | None
    ) -> list[MicroBatch]:
        """Several micro-batches as one batch of rows, and then cut apart."""
        positions = [self.positions(one.micro_batch, first_position, skips) for one in own]
        rows = self._reader.read(np.concatenate([self.sample_ids(part) for part in positions]))
        masks = mask_rows(
            rows.input_ids_BL,
            rows.num_tokens_B,
            np.concatenate(positions),
            self._rule,
            rows.word_start_BL,
        )
        arrays: dict[str, Any] = {
            "input_ids_BL": rows.input_ids_BL,
            "masked_ids_BL": masks.masked_ids_BL,
            "token_type_ids_BL": rows.token_type_ids_BL,
            "num_tokens_B": rows.num_tokens_B,
            "masked_positions_BN": masks.positions_BN,
            "masked_weights_BN": masks.weights_BN,
        }
        if rows.block_ids_BL is not None:
            arrays |= {"block_ids_BL": rows.block_ids_BL, "position_ids_BL": rows.position_ids_BL}
        size = self._batch.micro_batch_size
        return [
            MicroBatch(
                step=step,
                index=one.micro_batch,
                is_real=one.is_real,
                **{name: array[n * size : (n + 1) * size] for name, array in arrays.items()},
            )
            for n, one in enumerate(own)
        ]
