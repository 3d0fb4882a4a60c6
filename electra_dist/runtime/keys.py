"""One key from several whole numbers: what every draw of a run is keyed by."""

from __future__ import annotations

_MASK64 = 2**64 - 1


def fold(*keys: int) -> int:
    """Mix whole numbers into a 64-bit one (splitmix64, Steele et al. 2014); their order matters."""
    state = 0
    for key in keys:
        state = (state ^ (key & _MASK64)) + 0x9E3779B97F4A7C15 & _MASK64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK64
        state ^= state >> 31
    return state
