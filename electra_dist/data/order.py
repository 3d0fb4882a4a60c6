"""Which sample stands at which position: a keyed permutation of each epoch, computed, not stored.

Positions run on through epochs. Within an epoch, blocks of neighbouring samples are permuted,
windows of blocks follow each other, and the samples of a window are permuted among themselves: a
read window touches few large contiguous pieces of the corpus, which disks, Lustre and object stores
like, while samples mix over ``block_size * window_blocks`` neighbours. All of it is O(1) per
position, so seeking anywhere costs the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from electra_dist.data.hashing import mix64
from electra_dist.runtime.keys import fold

# Balanced Feistel networks look random from about 4 rounds (Luby and Rackoff 1988); 6 leave a
# margin on tiny halves.
_NUM_ROUNDS = 6
_BLOCKS, _WINDOW, _TAIL, _TAIL_PLACE = range(4)


def permute(indices: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """A keyed bijection on [0, size): a Feistel network with cycle walking, over all `indices`."""
    if size <= 1:
        return indices.copy()
    bits = max(2, (size - 1).bit_length())
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    keys = mix64(np.arange(_NUM_ROUNDS, dtype=np.uint64) + np.uint64(key))
    walking = indices.astype(np.uint64)
    result = np.empty_like(walking)
    places = np.arange(len(walking))
    while len(walking):
        low, high = walking & low_mask, walking >> low_bits
        for round_number in range(0, _NUM_ROUNDS, 2):
            high ^= mix64(low ^ keys[round_number]) & high_mask
            low ^= mix64(high ^ keys[round_number + 1]) & low_mask
        walking = (high << low_bits) | low
        # The network permutes the next power of two; what falls outside is sent through again until
        # it is inside.
        inside = walking < np.uint64(size)
        result[places[inside]] = walking[inside]
        walking, places = walking[~inside], places[~inside]
    return result.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Order:
    """The global sequence of sample ids, the same for all world sizes, micro-batches, threads."""

    seed: int
    """Key of every permutation."""
    num_samples: int
    """Samples in one epoch."""
    block_size: int = 512
    """Samples that lie together in the corpus."""
    window_blocks: int = 64
    """Blocks whose samples are mixed with each other."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "block_size", "window_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"Order.{name} = {getattr(self, name)} must be at least 1")

    def sample_ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample ids at global `positions` (int64, any order, epochs run on): a bijection an epoch.

        Raises:
            ValueError: a position is negative.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if len(positions) and positions.min() < 0:
            raise ValueError(f"positions count from 0, got {positions.min()}")
        ids = np.empty_like(positions)
        epochs = positions // self.num_samples
        for epoch in np.unique(epochs):
            here = epochs == epoch
            ids[here] = self._epoch_ids(int(epoch), positions[here] % self.num_samples)
        return ids

    def _epoch_ids(self, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        num_blocks, tail = divmod(self.num_samples, self.block_size)
        num_windows = -(-num_blocks // self.window_blocks)
        # The last, partial block is read between two windows, at a place that changes with the
        # epoch.
        tail_window = fold(self.seed, epoch, _TAIL_PLACE) % (num_windows + 1)
        tail_start = min(tail_window * self.window_blocks, num_blocks) * self.block_size
        in_tail = (indices >= tail_start) & (indices < tail_start + tail)
        ids = np.empty_like(indices)
        if in_tail.any():
            key = fold(self.seed, epoch, _TAIL)
            shuffled = permute(indices[in_tail] - tail_start, tail, key)
            ids[in_tail] = num_blocks * self.block_size + shuffled
        rest = indices[~in_tail]
        rest = np.where(rest >= tail_start + tail, rest - tail, rest)
        ids[~in_tail] = self._block_ids(epoch, rest, num_blocks)
        return ids

    def _block_ids(
        self, epoch: int, indices: NDArray[np.int64], num_blocks: int
    ) -> NDArray[np.int64]:
        """Ids of indices that count whole blocks only: shuffle in the window, look up its block."""
        window_size = self.window_blocks * self.block_size
        windows = indices // window_size
        shuffled = np.empty_like(indices)
        for window in np.unique(windows):
            here = windows == window
            start = int(window) * window_size
            size = min(window_size, num_blocks * self.block_size - start)
            key = fold(self.seed, epoch, _WINDOW, int(window))
            shuffled[here] = start + permute(indices[here] - start, size, key)
        slots, offsets = np.divmod(shuffled, self.block_size)
        blocks = permute(slots, num_blocks, fold(self.seed, epoch, _BLOCKS))
        return blocks * self.block_size + offsets
