"""A stack of layers of either backbone: run in turn, computed again, compiled.

Shapes: B rows, L positions, T tokens of all rows (B L, or the real ones alone), D hidden width,
S dropout sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from electra_dist.model import ops

SITES_PER_LAYER = 3
"""Attention weights, attention output, ffn output: what is dropped in a layer."""

LAYERS_A_GRAPH = 6
LAYERS_A_GRAPH_ON_CUDA = 2
"""That torch compiles as one, at most.

A call costs 0.5 ms beside its operations, each way. On two CPU cores sixes take 2 % less of a step
of `small` than pairs, and 1.5 times as long to compile; all twelve layers as one gain 1 % more at
most and take twice as long. On CUDA a call's cost hides behind kernels that are queued, and the
gradients of a graph come, and can be sent while others are made, when all of it is done.
"""


class Layout(NamedTuple):
    """Where the tokens of a batch stand: T of them in B rows of L."""

    batch_size: int
    """B as a number of Python; a layer asks `num_rows`."""
    length: int
    bias_B1QL: Tensor | None
    """0 where a query may read a key (Q: 1 or L), -inf elsewhere; None: it may always."""
    places_T: Tensor | None
    """int64, places of the real tokens among the B L; None where all are computed."""
    angles: tuple[Tensor, Tensor] | None = None
    """Cosines and sines that `modern` turns by."""

    @property
    def num_rows(self) -> int:
        """B. Where rows are shared it is any number: torch's compiler is shown a shape.

        A number of Python would be a constant to it, once. And B is not T // L: with a division in
        its loops a compiled step of `small` is as slow as one that is not.
        """
        if self.has_own_rows:
            assert self.bias_B1QL is not None
            return self.bias_B1QL.shape[0]
        return self.batch_size

    @property
    def has_own_rows(self) -> bool:
        """Whether each row has blocks of its own: rows are shared, and B is any number."""
        bias = self.bias_B1QL
        return bias is not None and bias.shape[0] > 1 and bias.shape[2] > 1


def run_layers(
    layers: nn.ModuleList,
    hidden_TD: Tensor,
    layouts: Sequence[Layout],
    keys_S: Tensor | None,
    *,
    recompute: bool,
    compiled: bool,
) -> Tensor:
    """The layers of either backbone, in turn: computed again in the backward pass if asked.

    Args:
        layers: all of one class, number of heads and width.
        hidden_TD: what the first one reads.
        layouts: of each layer.
        keys_S: of the dropout sites of all layers, None for no dropout.
        recompute: keep each layer's input only.
        compiled: run them through torch.compile.
    """
    noise: Sequence[Tensor | None] = [None] * len(layers)
    if keys_S is not None:
        # The rows of attention's mask are the most that a mask of a layer has.
        num_rows, length = layouts[0].batch_size, layouts[0].length
        most_rows = num_rows * length * cast(Any, layers[0]).num_heads
        words_SW = ops.noise(keys_S, (most_rows, max(length, hidden_TD.shape[-1])))
        noise = words_SW.split(SITES_PER_LAYER)
    recompute = recompute and torch.is_grad_enabled()
    in_order = list(layers)
    one_by_one = recompute or not compiled
    most = 1 if one_by_one else _layers_a_graph(len(layers), on_cuda=hidden_TD.is_cuda)
    for part in _parts(layouts, most):
        layout = layouts[part.start]
        run: Callable[..., Tensor] = _run_in_turn
        if compiled:
            run = compiled_layers()
            _tell_what_varies(hidden_TD, layout, noise[part])
        if recompute:
            # Masks are made of their words again; CUDA's fused kernels need the generator's state.
            keeps_state = hidden_TD.is_cuda
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=keeps_state)
        hidden_TD = run(hidden_TD, in_order[part], layout, noise[part])
    return hidden_TD


def _layers_a_graph(num_layers: int, *, on_cuda: bool) -> int:
    """So many that all parts are as long, where that can be: they are one form then."""
    most = LAYERS_A_GRAPH_ON_CUDA if on_cuda else LAYERS_A_GRAPH
    return next((size for size in range(most, 1, -1) if num_layers % size == 0), most)


def _parts(layouts: Sequence[Layout], most: int) -> Iterator[slice]:
    """Layers in order, up to so many at a time of those that follow each other in one layout."""
    start = 0
    for stop in range(1, len(layouts) + 1):
        if stop - start == most or stop == len(layouts) or layouts[stop] is not layouts[start]:
            yield slice(start, stop)
            start = stop


def _run_in_turn(
    hidden_TD: Tensor,
    layers: Sequence[nn.Module],
    layout: Layout,
    noise: Sequence[Tensor | None],
) -> Tensor:
    for layer, noise_S in zip(layers, noise, strict=True):
        hidden_TD = layer(hidden_TD, layout, noise_S)
    return hidden_TD


def _tell_what_varies(hidden_TD: Tensor, layout: Layout, noise: Sequence[Tensor | None]) -> None:
    """To torch's compiler: not the width, but T where padding is left out, and B of shared rows.

    By itself it would take the width, in which the towers differ that share this code, for a
    variable and could not vectorise it; and T and B for constants once, so that each form of a
    layer would be compiled twice.
    """
    mark = torch._dynamo
    mark.mark_static(hidden_TD, 1)
    if layout.places_T is not None:
        mark.maybe_mark_dynamic(hidden_TD, 0)
        mark.maybe_mark_dynamic(layout.places_T, 0)
    if layout.has_own_rows:
        for rows in (hidden_TD, layout.bias_B1QL, *(layout.angles or ())):
            mark.maybe_mark_dynamic(rows, 0)
        for noise_S in noise:
            if noise_S is not None:
                mark.maybe_mark_dynamic(noise_S, 1)


@cache
def compiled_layers() -> Callable[..., Tensor]:
    """`_run_in_turn`, compiled; what cannot be compiled runs as it is.

    A few layers at a time: all parts of a tower that are as long, and of one layout, are one form.
    """
    import torch._dynamo
    import torch._functorch.config

    torch._dynamo.config.suppress_errors = True
    # By itself torch compiles our functions with gradients of their own at every start again. Its
    # key has their operations, and those of `operations` by name.
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    # Two towers, with and without gradient; no padding, a mask, blocks, both of these without what
    # is padding; `modern`: the first layer, global ones, pairs of local ones and one left over.
    # 80, and more where lengths vary. Not in torch's configuration, which the thread of CUDA's
    # backward pass does not have.
    most_forms = 128
    # Strides of all parameters and of what our operations give: 1,000 checks a step, 1 % of it.
    options = {"size_asserts": False}
    compile_layers: Callable[..., Callable[..., Tensor]] = torch.compile  # its stubs lack the limit
    return compile_layers(_run_in_turn, recompile_limit=most_forms, options=options)
