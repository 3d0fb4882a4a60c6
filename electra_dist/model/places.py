"""Tokens that are computed, and the rows they stand in: padding is left out of every layer.

Each of the two moves is the other's gradient. They are operations of their own: torch's gradient of
an index adds up duplicates, which do not exist here, one by one; and torch's compiler would fuse an
index into loops that it then cannot vectorise (a third of a compiled step of `small` on a CPU).

Shapes: B rows, L positions, P = B L places, T tokens that are computed, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from electra_dist.model import operations


def _take(rows_PD: Tensor, places_T: Tensor) -> Tensor:
    return rows_PD.index_select(0, places_T)


def _put(tokens_TD: Tensor, places_T: Tensor, num_places: int) -> Tensor:
    rows_PD = tokens_TD.new_zeros(num_places, tokens_TD.shape[1])
    return rows_PD.index_copy_(0, places_T, tokens_TD)


take: Callable[..., Tensor] = operations.define(
    "take(Tensor rows, Tensor places) -> Tensor",
    _take,
    lambda rows_PD, places_T: rows_PD.new_empty(places_T.shape[0], rows_PD.shape[1]),
)
put: Callable[..., Tensor] = operations.define(
    "put(Tensor tokens, Tensor places, SymInt num_places) -> Tensor",
    _put,
    lambda tokens_TD, _, num_places: tokens_TD.new_empty(num_places, tokens_TD.shape[1]),
)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_PD: Tensor, places_T: Tensor) -> Tensor:
        ctx.save_for_backward(places_T)
        ctx.num_places = rows_PD.shape[0]
        return take(rows_PD, places_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor, None]:
        return put(gradient_TD, *ctx.saved_tensors, ctx.num_places), None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_TD: Tensor, places_T: Tensor, num_places: int) -> Tensor:
        ctx.save_for_backward(places_T)
        return put(tokens_TD, places_T, num_places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_PD: Tensor) -> tuple[Tensor, None, None]:
        return take(gradient_PD, *ctx.saved_tensors), None, None


def tokens_of(rows_BLD: Tensor, places_T: Tensor | None) -> Tensor:
    """The tokens that are computed, [T, D]: those at `places_T` (each once), or all."""
    rows_PD = rows_BLD.flatten(0, 1)
    if places_T is None:
        return rows_PD
    tokens_TD: Tensor = _Take.apply(rows_PD, places_T)
    return tokens_TD


def in_rows(tokens_TD: Tensor, num_rows: int, length: int, places_T: Tensor | None) -> Tensor:
    """Tokens back in their rows, [B, L, D]; zeros where none was computed."""
    if places_T is not None:
        tokens_TD = _Put.apply(tokens_TD, places_T, num_rows * length)
    return tokens_TD.view(num_rows, length, tokens_TD.shape[-1])
