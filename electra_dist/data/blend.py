"""Several corpora in whole-number proportions: which corpus a position reads, and which row of it.

Weights w with sum S make a fixed pattern of S slots, repeated for ever: in every S positions corpus
c is read exactly w[c] times, and no stretch from the pattern's start ever misses its proportion by
a whole row.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Blend(NamedTuple):
    """One period of the pattern, S slots of C corpora."""

    weights_C: NDArray[np.int64]
    """Slots of each corpus, without their common divisor."""
    corpus_S: NDArray[np.int64]
    """The corpus that each slot reads."""
    rank_S: NDArray[np.int64]
    """How many slots before it read the same corpus."""

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Corpus, and position in that corpus's own sequence, of each blend position."""
        periods, slots = np.divmod(positions, len(self.corpus_S))
        corpora = self.corpus_S[slots]
        return corpora, periods * self.weights_C[corpora] + self.rank_S[slots]


@lru_cache(maxsize=8)
def make_blend(weights: tuple[int, ...]) -> Blend:
    """The pattern of these weights (each at least 1): 16 bytes a slot, 0.3 s for 65,536 of them."""
    divisor = gcd(*weights)
    reduced = [weight // divisor for weight in weights]
    corpus_S = np.array(spread(reduced), dtype=np.int64)
    rank_S = np.empty_like(corpus_S)
    for corpus, weight in enumerate(reduced):
        rank_S[corpus_S == corpus] = np.arange(weight)
    return Blend(np.array(reduced, dtype=np.int64), corpus_S, rank_S)


def spread(weights: Sequence[int]) -> list[int]:
    """A sequence of sum(weights) corpora in which each stands as often as its weight says.

    After any n slots corpus c has been read w[c] n / S times, give or take 1 - 1 / (2 (C - 1)): the
    least that any rule can promise (Tijdeman, The chairman assignment problem, 1980). His rule: the
    k-th row of a corpus may stand in a slot once that leaves it not too far ahead, must stand
    before it is too far behind, and the most urgent of those that may goes first.
    """
    if len(weights) == 1:
        return [0] * weights[0]
    total, unit = sum(weights), 2 * len(weights) - 2
    jobs = sorted(
        # First and last slot of row k, counted from 0, as whole numbers.
        (
            -(-total * (k * unit + 1) // (weight * unit)) - 1,
            total * ((k + 1) * unit - 1) // (weight * unit),
            corpus,
        )
        for corpus, weight in enumerate(weights)
        for k in range(weight)
    )
    ready: list[tuple[int, int]] = []
    pattern: list[int] = []
    next_job = 0
    for slot in range(total):
        while next_job < total and jobs[next_job][0] <= slot:
            heapq.heappush(ready, jobs[next_job][1:])
            next_job += 1
        pattern.append(heapq.heappop(ready)[1])
    return pattern
