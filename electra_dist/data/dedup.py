"""Which documents came before? Equal keys among millions of rows, in little memory.

Keys are read several times, a share of them at each: a pass sorts those whose leading bits say that
they belong to it. Memory is about 1 byte a row and 100 bytes for each row of a pass.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from electra_dist.data.store import Array

# 3 MB at a time; with more rows than 16 times this a sixteenth of them, so 6 bytes a row.
_ROWS_A_PASS = 1 << 15
_MAX_PASSES = 16

ReadKeys = Callable[[], Iterable[Array]]
"""Gives all keys in order, in blocks uint64 [n, K], as often as it is called."""


def repeats(read_keys: ReadKeys, num_rows: int) -> npt.NDArray[np.bool_]:
    """Bool [num_rows]: an equal key came before."""
    is_repeat = np.zeros(num_rows, np.bool_)
    for rows, _ in equal_to_earlier(read_keys, num_rows):
        is_repeat[rows] = True
    return is_repeat


def equal_to_earlier(read_keys: ReadKeys, num_rows: int) -> Iterator[tuple[Array, Array]]:
    """Pairs of int64 arrays: rows whose key came before, and for each the first row that had it.

    The leading bits of a key must be evenly spread, as those of a hash are.
    """
    bits = 0
    while num_rows >> bits > _ROWS_A_PASS and 1 << bits < _MAX_PASSES:
        bits += 1
    for wanted in range(1 << bits):
        keys, rows = _of_pass(read_keys(), bits, wanted)
        # Stable, so rows of one key stay in order.
        order = np.lexsort(keys.T[::-1]) if len(keys) else np.zeros(0, np.int64)
        keys, rows = keys[order], rows[order]
        is_first = np.ones(len(keys), np.bool_)
        is_first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        firsts = rows[is_first][np.cumsum(is_first) - 1]
        yield rows[~is_first], firsts[~is_first]


def _of_pass(blocks: Iterable[Array], bits: int, wanted: int) -> tuple[Array, Array]:
    keys: list[Array] = [np.zeros((0, 1), np.uint64)]
    rows: list[Array] = []
    start = 0
    for block in blocks:
        chosen = np.arange(len(block))
        if bits:
            chosen = np.flatnonzero(block[:, 0] >> np.uint64(64 - bits) == np.uint64(wanted))
        keys.append(block[chosen])
        rows.append(start + chosen)
        start += len(block)
    if not rows:
        return np.zeros((0, 1), np.uint64), np.zeros(0, np.int64)
    return np.concatenate(keys[1:]), np.concatenate(rows)
