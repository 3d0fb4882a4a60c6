"""Which row stands at which position: arithmetic, so that seeking anywhere costs the same.

From the n-th position that a run uses to a row, in four pure steps:

    skips     the n-th position that lies in no skipped interval
    lanes     runs of `lane_run` positions go round the lanes; a lane owns a part of each corpus
    blend     a fixed pattern says which corpus a position of the lane reads (blend.py)
    epochs    that (lane, corpus) part, permuted anew in each of its epochs (permutation.py)

Nothing here knows of ranks: a change of the cluster changes who reads a row, never which.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from electra_dist.data.blend import Blend, make_blend
from electra_dist.data.permutation import Epochs
from electra_dist.runtime.keys import fold

Skips = tuple[tuple[int, int], ...]
"""Skipped intervals [first, last) of positions, in order and disjoint."""


def unskipped(positions: NDArray[np.int64], skips: Skips) -> NDArray[np.int64]:
    """The n-th position that no skipped interval holds, for each n of `positions` (int64)."""
    if not skips:
        return positions
    intervals = np.array(skips, dtype=np.int64)
    skipped = np.cumsum(intervals[:, 1] - intervals[:, 0])
    # Interval j stands in the way once as many positions have been used as lie unskipped before it.
    used_before = intervals[:, 0] - np.concatenate([[0], skipped[:-1]])
    passed = np.searchsorted(used_before, positions, side="right")
    unused: NDArray[np.int64] = np.concatenate([[0], skipped])[passed]
    return positions + unused


def skipping(skips: Skips, first: int, last: int) -> Skips:
    """The skips that also leave out what `skips` puts at used positions [first, last)."""
    start, end = (int(one) for one in unskipped(np.array([first, last - 1], np.int64), skips))
    merged: list[tuple[int, int]] = []
    for interval in sorted([*skips, (start, end + 1)]):
        if merged and interval[0] <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], interval[1]))
        else:
            merged.append(interval)
    return tuple(merged)


@dataclass(frozen=True, kw_only=True)
class Order:
    """The endless sequence of row ids, the same for every world size and number of threads.

    Ids run through the corpora: those of corpus c start where those of corpus c - 1 end. With one
    corpus and one lane each epoch is a bijection on all of them; else each (lane, corpus) part has
    epochs of its own, each a bijection on the part.

    Raises:
        ValueError: a number is below 1, weights and corpora differ in count, or a corpus has fewer
            rows than there are lanes.
    """

    seed: int
    """Key of every permutation."""
    num_samples: int | tuple[int, ...]
    """Rows of the corpus, or of each corpus."""
    block_size: int = 512
    """Rows that lie together in a corpus."""
    window_blocks: int = 64
    """Blocks whose rows are mixed with each other."""
    weights: tuple[int, ...] = (1,)
    """Proportions in which the corpora are read."""
    num_lanes: int = 1
    """Sequences with disjoint parts of every corpus; readers of one lane touch its part only."""
    lane_run: int = 1
    """Positions that one lane gives before it is the next one's turn: the micro-batch size."""

    def __post_init__(self) -> None:
        for name in ("block_size", "window_blocks", "num_lanes", "lane_run"):
            if getattr(self, name) < 1:
                raise ValueError(f"Order.{name} = {getattr(self, name)} must be at least 1")
        if min(self.sizes) < 1 or min(self.weights) < 1:
            raise ValueError(
                f"Order.num_samples = {self.num_samples} and weights = {self.weights} "
                "must be at least 1"
            )
        if len(self.weights) != len(self.sizes):
            raise ValueError(f"Order.weights = {self.weights} must be {len(self.sizes)} numbers")
        if min(self.sizes) < self.num_lanes:
            raise ValueError(
                f"Order.num_lanes = {self.num_lanes} must be at most {min(self.sizes)}, "
                "the rows of the smallest corpus"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each corpus."""
        return self.num_samples if isinstance(self.num_samples, tuple) else (self.num_samples,)

    def sample_ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row ids at global `positions` (int64, any order).

        Raises:
            ValueError: a position is negative.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if len(positions) and positions.min() < 0:
            raise ValueError(f"positions count from 0, got {positions.min()}")
        if self.num_lanes == 1:
            return self.lane_ids(0, positions)
        lanes, lane_positions = self.lanes(positions)
        ids = np.empty_like(positions)
        for lane in np.unique(lanes):
            here = lanes == lane
            ids[here] = self.lane_ids(int(lane), lane_positions[here])
        return ids

    def lanes(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lane, and position in that lane's sequence, of each global position."""
        runs, places = np.divmod(positions, self.lane_run)
        rounds, lanes = np.divmod(runs, self.num_lanes)
        return lanes, rounds * self.lane_run + places

    def lane_ids(self, lane: int, lane_positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row ids at positions (int64, not negative, any order) of one lane's sequence."""
        if self._blend is None:
            epochs, first_id = self._part(0, lane)
            return epochs.rows(lane_positions) + first_id
        corpora, indices = self._blend.locate(lane_positions)
        ids = np.empty_like(lane_positions)
        for corpus in range(len(self.weights)):
            here = np.flatnonzero(corpora == corpus)
            epochs, first_id = self._part(corpus, lane)
            ids[here] = epochs.rows(indices[here]) + first_id
        return ids

    @cached_property
    def _blend(self) -> Blend | None:
        return make_blend(self.weights) if len(self.weights) > 1 else None

    def _part(self, corpus: int, lane: int) -> tuple[Epochs, int]:
        """The lane's share of a corpus, an equal piece in one stretch, and its first row's id."""
        size = self.sizes[corpus]
        start, end = (size * n // self.num_lanes for n in (lane, lane + 1))
        epochs = Epochs(
            # One corpus and one lane have the order that they had before there were several.
            seed=fold(self.seed, corpus, lane) if corpus or lane else self.seed,
            num_samples=end - start,
            block_size=self.block_size,
            window_blocks=self.window_blocks,
        )
        return epochs, sum(self.sizes[:corpus]) + start
