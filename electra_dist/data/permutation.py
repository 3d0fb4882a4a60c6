"""A keyed permutation of an epoch of rows: computed, not stored, O(1) per position.

Blocks of neighbouring rows are permuted, windows of blocks follow each other, and the rows of a
window are permuted among themselves: a read window touches few large contiguous pieces of the
corpus, which disks, Lustre and object stores like, while rows mix over ``block_size *
window_blocks`` neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from electra_dist.data.hashing import mix64
from electra_dist.runtime.keys import fold

# Balanced Feistel networks look random from about 4 rounds (Luby and Rackoff 1988); 6 leave a
# margin on tiny halves.
_NUM_ROUNDS = 6
# The blocks of a window are kept for the next positions where they are so few (8 KB).
_MAX_CACHED_SLOTS = 1024
_BLOCKS, _WINDOW, _TAIL, _TAIL_PLACE = range(4)
# splitmix64's constants and shifts, as in hashing.mix64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_SHIFT1, _SHIFT2, _SHIFT3 = np.uint64(30), np.uint64(27), np.uint64(31)


def permute(indices: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """A keyed bijection on [0, size): a Feistel network with cycle walking, over all `indices`."""
    if size <= 1:
        return indices.copy()
    bits = max(2, (size - 1).bit_length())
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    keys = mix64(np.arange(_NUM_ROUNDS, dtype=np.uint64) + np.uint64(key))
    result = _feistel(indices.astype(np.uint64), keys, low_bits, low_mask, high_mask)
    if size == 1 << bits:
        return result.view(np.int64)
    # The network permutes the next power of two; what falls outside is sent through again until it
    # is inside: less than once on average.
    limit = np.uint64(size)
    outside = np.flatnonzero(result >= limit)
    walking = result[outside]
    while len(outside):
        walking = _feistel(walking, keys, low_bits, low_mask, high_mask)
        still = walking >= limit
        result[outside[~still]] = walking[~still]
        outside, walking = outside[still], walking[still]
    return result.view(np.int64)


def _feistel(
    values: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    low_bits: np.uint64,
    low_mask: np.uint64,
    high_mask: np.uint64,
) -> NDArray[np.uint64]:
    """One pass of the network. Its arithmetic is in place: half the time goes into fresh arrays."""
    low, high = values & low_mask, values >> low_bits
    mixed, shifted = np.empty_like(values), np.empty_like(values)
    for round_number in range(_NUM_ROUNDS):
        source, target, mask = (high, low, low_mask) if round_number % 2 else (low, high, high_mask)
        # The half that is not the source is xored with mix64(source ^ key).
        np.bitwise_xor(source, keys[round_number], out=mixed)
        mixed += _GOLDEN
        mixed ^= np.right_shift(mixed, _SHIFT1, out=shifted)
        mixed *= _MIX1
        mixed ^= np.right_shift(mixed, _SHIFT2, out=shifted)
        mixed *= _MIX2
        mixed ^= np.right_shift(mixed, _SHIFT3, out=shifted)
        mixed &= mask
        target ^= mixed
    high <<= low_bits
    high |= low
    return high


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """The rows [0, num_samples) in an endless sequence, each epoch in an order of its own."""

    seed: int
    """Key of every permutation."""
    num_samples: int
    """Rows in one epoch."""
    block_size: int
    """Rows that lie together in the corpus."""
    window_blocks: int
    """Blocks whose rows are mixed with each other."""

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at `positions` (int64, not negative, any order): a bijection on each epoch."""
        if not len(positions):
            return np.empty(0, np.int64)
        first, last = int(positions.min()), int(positions.max())
        epoch = first // self.num_samples
        if epoch == last // self.num_samples:
            return self._epoch_rows(epoch, positions - epoch * self.num_samples)
        rows = np.empty_like(positions)
        epochs, indices = np.divmod(positions, self.num_samples)
        for one in np.unique(epochs):
            here = epochs == one
            rows[here] = self._epoch_rows(int(one), indices[here])
        return rows

    def _epoch_rows(self, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        num_blocks, tail = divmod(self.num_samples, self.block_size)
        if not tail:
            return self._block_rows(epoch, indices, num_blocks)
        num_windows = -(-num_blocks // self.window_blocks)
        # The last, partial block is read between two windows, at a place that changes with the
        # epoch.
        tail_window = fold(self.seed, epoch, _TAIL_PLACE) % (num_windows + 1)
        tail_start = min(tail_window * self.window_blocks, num_blocks) * self.block_size
        behind = indices >= tail_start + tail
        rest = np.where(behind, indices - tail, indices)
        in_tail = (indices >= tail_start) ^ behind
        if not in_tail.any():
            return self._block_rows(epoch, rest, num_blocks)
        rows = np.empty_like(indices)
        key = fold(self.seed, epoch, _TAIL)
        shuffled = permute(indices[in_tail] - tail_start, tail, key)
        rows[in_tail] = num_blocks * self.block_size + shuffled
        rows[~in_tail] = self._block_rows(epoch, rest[~in_tail], num_blocks)
        return rows

    def _block_rows(
        self, epoch: int, indices: NDArray[np.int64], num_blocks: int
    ) -> NDArray[np.int64]:
        """Rows of indices that count whole blocks only: window after window."""
        if not len(indices):
            return indices
        window_size = self.window_blocks * self.block_size
        first, last = int(indices.min()) // window_size, int(indices.max()) // window_size
        if first == last:
            return self._window_rows(epoch, first, indices, num_blocks)
        windows = indices // window_size
        rows = np.empty_like(indices)
        for window in np.unique(windows):
            here = windows == window
            rows[here] = self._window_rows(epoch, int(window), indices[here], num_blocks)
        return rows

    def _window_rows(
        self, epoch: int, window: int, indices: NDArray[np.int64], num_blocks: int
    ) -> NDArray[np.int64]:
        """Shuffle the rows of the window, look up which block lies in each of its slots."""
        first_slot = window * self.window_blocks
        num_slots = min(self.window_blocks, num_blocks - first_slot)
        window_key = fold(self.seed, epoch, _WINDOW, window)
        start = first_slot * self.block_size
        shuffled = permute(indices - start, num_slots * self.block_size, window_key)
        slots = shuffled // self.block_size
        offsets = shuffled - slots * self.block_size
        blocks_key = fold(self.seed, epoch, _BLOCKS)
        if num_slots <= _MAX_CACHED_SLOTS:
            blocks = _blocks_of_slots(first_slot, num_slots, num_blocks, blocks_key)[slots]
        else:
            blocks = permute(slots + first_slot, num_blocks, blocks_key)
        return blocks * self.block_size + offsets


@lru_cache(maxsize=64)
def _blocks_of_slots(
    first_slot: int, num_slots: int, num_blocks: int, key: int
) -> NDArray[np.int64]:
    """Blocks in the slots of one window: many positions in a row ask for the same few."""
    slots = np.arange(first_slot, first_slot + num_slots, dtype=np.int64)
    return permute(slots, num_blocks, key)
