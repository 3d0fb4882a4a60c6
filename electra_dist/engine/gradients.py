"""Gradients as a whole: their norm, the joint clip, and how much of the norm is of which tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from electra_dist.engine.parts import Parts, row_norms, squared_norm

SHARED = "shared"
"""What both towers use: word, position and type tables and their LayerNorm."""


def gradient_norm(gradients: Sequence[Tensor]) -> float:
    """Norm of all of them together.

    Summed in float64 (`row_norms`), as DeepSpeed's sharded stages do: a norm in float32 is off
    by 3e-7 of itself, and that moved the losses of 20 steps apart by 9e-6.
    """
    norms = torch.cat(row_norms(gradients))
    return float(torch.linalg.vector_norm(norms, dtype=torch.float64))


def clip_divisor(norm: float, max_norm: float) -> float:
    """What gradients of this norm are divided by, so that it is `max_norm` at most."""
    return (norm + 1e-6) / max_norm if norm > max_norm else 1.0


def tower_of(parameter: str) -> str:
    """`generator`, `discriminator` or `shared`, by the name of a parameter of the joint module."""
    first = parameter.split(".")[0]
    return SHARED if first == "embeddings" else first


class TowerNorms:
    """Squared norms of the gradients that an optimizer is about to apply, tower by tower.

    Args:
        parts: what this rank's optimizer holds.
        counts: False on a rank whose gradients are only a copy of another's.
    """

    def __init__(self, parts: Parts, *, counts: bool) -> None:
        self._parts, self._counts = parts, counts
        self._sums: list[Tensor] = []
        self._towers = [tower_of(name) for name in parts.names]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """See `MomentOptimizer.before_update`: nothing waits for the device here."""
        if self._counts:
            squares = [
                (number, squared_norm(tensor.grad.reshape(-1)[own]).reshape(1))
                for number, tensor, own in self._parts.walk(tensors)
                if tensor.grad is not None
            ]
            self._sums.append(self._parts.sums(squares, 1, tensors[0].device).squeeze(1))

    def take(self) -> dict[str, float]:
        """What was added since the last call: this rank's part of each squared norm."""
        found = dict.fromkeys(self._towers, 0.0)
        for sums in self._sums:
            for tower, square in zip(self._towers, sums.tolist(), strict=True):
                found[tower] += square
        self._sums.clear()
        return found
