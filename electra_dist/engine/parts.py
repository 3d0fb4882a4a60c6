"""Which elements of an optimizer's tensors are of which parameter, and sums over whole parameters.

ZeRO hands an optimizer flat tensors: pieces of many parameters in a row, cut where a rank's share
ends. What is meant for a whole parameter (a norm) is added up here over the pieces of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

_ROW = 1024
"""Elements whose squares are added in their own type."""


class Part(NamedTuple):
    """Elements [begin, begin + length) of an optimizer's flattened tensor: all in one parameter."""

    number: int
    """Of the parameter, in the module's order."""
    begin: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What this rank's optimizer holds of each parameter."""

    names: Sequence[str]
    """Of all parameters, in the module's order: the same on every rank."""
    of: Mapping[Tensor, Sequence[Part]]
    """By the tensor (itself, not its values) that the optimizer updates."""
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None
    """Adds a tensor up over the ranks among which parameters are cut; None: this rank has all."""

    @classmethod
    def whole(cls, module: nn.Module) -> Parts:
        """Every parameter uncut, a tensor of its own."""
        return cls.uncut(module.named_parameters())

    @classmethod
    def uncut(cls, named: Iterable[tuple[str, Tensor]]) -> Parts:
        """These tensors, each a parameter of that name."""
        tensors = dict(named)
        return cls(
            names=list(tensors),
            of={p: [Part(number, 0, p.numel())] for number, p in enumerate(tensors.values())},
        )

    def walk(self, tensors: Iterable[Tensor]) -> Iterator[tuple[int, Tensor, slice]]:
        """Number of the parameter, tensor, and the elements of it that are that parameter's."""
        for tensor in tensors:
            for number, begin, length in self.of.get(tensor, ()):  # none: it is padding
                yield number, tensor, slice(begin, begin + length)

    def sums(
        self, pieces: Sequence[tuple[int, Tensor]], width: int, device: torch.device
    ) -> Tensor:
        """The numbers of each parameter's pieces added up, on this rank.

        Args:
            pieces: number of the parameter, and `width` numbers in float64.
            width: how many numbers a piece has.
            device: where the answer is made.

        Returns:
            float64, a row a parameter of the model; zeros where this rank has no piece.
        """
        sums = torch.zeros(len(self.names), width, dtype=torch.float64, device=device)
        if pieces:
            index = torch.tensor([number for number, _ in pieces], device=device)
            sums.index_add_(0, index, torch.stack([numbers for _, numbers in pieces]))
        return sums

    def over_ranks(self, sums: Tensor) -> Tensor:
        """`sums` of whole parameters. Collective where parameters are cut."""
        return sums if self.sum_over_ranks is None else self.sum_over_ranks(sums)


def squared_norm(values: Tensor) -> Tensor:
    """Sum of squares, a float64 without dimension; see `row_norms`."""
    norms = torch.cat(row_norms([values])).double()
    return (norms * norms).sum()


def row_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Norms of rows of 1024 elements, and what is left: their squares add up to the tensors'.

    Within a row squares are added in the values' own type, which is many times faster than float64
    throughout; what that rounds off averages out over rows (1e-9 of the norm for `small`). Tensors
    shorter than a row (two thirds of a model's) are put together first: one call, not three each.
    """
    short = [values for values in tensors if values.numel() < _ROW]
    flat = [values.reshape(-1) for values in tensors if values.numel() >= _ROW]
    if short:
        flat.append(torch.cat([values.reshape(-1) for values in short]))
    return [norms for values in flat for norms in _row_norms(values)]


def _row_norms(flat: Tensor) -> Iterator[Tensor]:
    num_whole = len(flat) // _ROW * _ROW
    if num_whole:
        yield torch.linalg.vector_norm(flat[:num_whole].view(-1, _ROW), dim=1)
    if num_whole < len(flat) or not num_whole:
        yield flat[num_whole:]
