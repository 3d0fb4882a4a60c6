"""The BERT post-LN encoder that both towers use (algorithm: section 2).

Shapes: B rows, L positions, T tokens of all rows (B L, or the real ones alone), D hidden width,
E embedding width, F = 4 D, H heads, A = D / H, S dropout sites, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from electra_dist.config.schema import ModelConfig
from electra_dist.model import ops, random
from electra_dist.model.gelu import gelu
from electra_dist.model.linear import linear
from electra_dist.model.padding import WordTable
from electra_dist.model.places import in_rows, tokens_of

Direction = Literal["both", "left_to_right", "right_to_left"]

SITES_PER_LAYER = 3
"""Attention weights, attention output, ffn output: what is dropped in a layer."""


class Embeddings(nn.Module):
    """Word + token type + learned position, LayerNorm, dropout: shared by the towers.

    All of the embedding width.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        width = config.embedding_size
        self.word = WordTable(config, vocab_size)
        self.position = nn.Embedding(config.max_position_embeddings, width)
        self.token_type = nn.Embedding(config.type_vocab_size, width)
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout

    def forward(
        self,
        input_ids_BL: Tensor,
        token_type_ids_BL: Tensor,
        position_ids_BL: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Tensor:
        """Embed a batch of ids; returns [B, L, E]. Without position ids they are 0 to L - 1.

        `key` is that of the dropout site, None for no dropout.
        """
        if position_ids_BL is None:  # one row for the whole batch
            position_ids_BL = torch.arange(input_ids_BL.shape[1], device=input_ids_BL.device)
        embedded_BLE = (
            self.word(input_ids_BL)
            + self.token_type(token_type_ids_BL)
            + self.position(position_ids_BL)
        )
        return ops.dropout(self.layer_norm(embedded_BLE), self.dropout, key)


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


class Layer(nn.Module):
    """Attention and feed-forward, each LN(x + dropout(sub(x)))."""

    def __init__(self, config: ModelConfig, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.attention_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.ffn_in = nn.Linear(width, 4 * width)
        self.ffn_out = nn.Linear(4 * width, width)
        self.ffn_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.hidden_dropout = config.hidden_dropout
        self.attention_dropout = config.attention_dropout

    def forward(self, hidden_TD: Tensor, layout: Layout, noise_S: Tensor | None = None) -> Tensor:
        """One layer; `noise_S` is that of its dropout sites, None for no dropout."""
        weights_noise, attended_noise, out_noise = (
            (None,) * 3 if noise_S is None else noise_S.unbind(0)
        )
        context_TD = self._attend(hidden_TD, layout, weights_noise)
        attended_TD = linear(context_TD, self.attention_output)
        hidden_TD = self.attention_layer_norm(
            ops.add_dropped(hidden_TD, attended_TD, self.hidden_dropout, attended_noise)
        )
        out_TD = linear(gelu(linear(hidden_TD, self.ffn_in)), self.ffn_out)
        normed_TD: Tensor = self.ffn_layer_norm(
            ops.add_dropped(hidden_TD, out_TD, self.hidden_dropout, out_noise)
        )
        return normed_TD

    def _attend(self, hidden_TD: Tensor, layout: Layout, noise: Tensor | None) -> Tensor:
        """Attention within rows: what is left out of T stands as zeros that no token reads."""
        width = hidden_TD.shape[-1]
        qkv_TD = linear(hidden_TD, self.qkv)
        qkv = in_rows(qkv_TD, layout.num_rows, layout.length, layout.places_T)
        qkv_BL3HA = qkv.view(*qkv.shape[:2], 3, self.num_heads, width // self.num_heads)
        context_BLD = ops.attention(qkv_BL3HA, layout.bias_B1QL, self.attention_dropout, noise)
        return tokens_of(context_BLD, layout.places_T)


class Encoder(nn.Module):
    """`embeddings_project` (where the embedding width is not the tower's) and a stack of layers."""

    def __init__(self, config: ModelConfig, num_layers: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.embeddings_project = (
            nn.Linear(config.embedding_size, width) if config.embedding_size != width else None
        )
        self.layers = nn.ModuleList(Layer(config, width, num_heads) for _ in range(num_layers))
        self.recompute = False
        """Keep each layer's input only and compute the layer again in the backward pass."""
        self.compiled = False
        """Run the layers through torch.compile."""
        self.direction: Direction = "both"
        """What a token may read: all, or itself and what is on one side."""

    @property
    def num_sites(self) -> int:
        """Dropout sites of all layers."""
        return SITES_PER_LAYER * len(self.layers)

    def forward(
        self,
        embedded_BLE: Tensor,
        attention_mask_BL: Tensor | None,
        block_ids_BL: Tensor | None = None,
        places_T: Tensor | None = None,
        keys_S: Tensor | None = None,
        position_ids_BL: Tensor | None = None,  # noqa: ARG002  (all backbones are called alike)
    ) -> Tensor:
        """Contextual vectors [B, L, D].

        Args:
            embedded_BLE: from `Embeddings`.
            attention_mask_BL: bool, True at real tokens, or None where nothing is padded.
            block_ids_BL: a token attends to tokens of its own block only (0: padding).
            places_T: where the real tokens stand among the B L places: only they are computed and
                the vectors of padding are 0.
            keys_S: of the dropout sites, None for no dropout.
            position_ids_BL: what `modern` turns by; here positions are in the embeddings already.
        """
        num_rows, length, _ = embedded_BLE.shape
        mask_B1QL = attention_mask(attention_mask_BL, block_ids_BL)
        if self.direction != "both":
            mask_B1QL = causal_mask(mask_B1QL, length, self.direction, embedded_BLE.device)
        bias_B1QL = ops.attention_bias(mask_B1QL, embedded_BLE)
        layout = Layout(num_rows, length, bias_B1QL, places_T)
        hidden_TD = tokens_of(embedded_BLE, places_T)
        if self.embeddings_project is not None:
            hidden_TD = self.embeddings_project(hidden_TD)
        hidden_TD = run_layers(
            self.layers,
            hidden_TD,
            [layout] * len(self.layers),
            keys_S,
            recompute=self.recompute,
            compiled=self.compiled,
        )
        return in_rows(hidden_TD, num_rows, length, places_T)


def run_layers(
    layers: nn.ModuleList,
    hidden_TD: Tensor,
    layouts: Sequence[Layout],
    keys_S: Tensor | None,
    *,
    recompute: bool,
    compiled: bool,
) -> Tensor:
    """The layers of either backbone, one by one: computed again in the backward pass if asked.

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
        most_rows = num_rows * length * cast(Layer, layers[0]).num_heads
        words_SW = ops.noise(keys_S, (most_rows, max(length, hidden_TD.shape[-1])))
        noise = words_SW.split(SITES_PER_LAYER)
    for layer, layout, noise_S in zip(layers, layouts, noise, strict=True):
        run: Callable[..., Tensor] = layer
        if compiled:
            kind: Any = type(layer)  # to mypy no class is hashable
            run = partial(compiled_layer(kind), layer)
            _tell_what_varies(hidden_TD, layout, noise_S)
        if recompute and torch.is_grad_enabled():
            # Masks are made of their words again; CUDA's fused kernels need the generator's state.
            keeps_state = hidden_TD.is_cuda
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=keeps_state)
        hidden_TD = run(hidden_TD, layout, noise_S)
    return hidden_TD


def _tell_what_varies(hidden_TD: Tensor, layout: Layout, noise_S: Tensor | None) -> None:
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
        if noise_S is not None:
            mark.maybe_mark_dynamic(noise_S, 1)


@cache
def compiled_layer(kind: Any) -> Callable[..., Tensor]:
    """`forward` of a class of layers, compiled; what cannot be compiled runs as it is.

    By the layer, as all layers of a width are compiled in the time of one.
    """
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True
    # Two towers, with and without gradient; no padding, a mask, blocks, both of these without what
    # is padding; `modern`: the first layer, global and local ones.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    compiled: Callable[..., Tensor] = torch.compile(kind.forward)
    return compiled


def draw_keys(encoder: nn.Module, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Keys of a tower's pass: of the embeddings' site and of the encoder's; none in evaluation."""
    if not encoder.training:
        return None, None
    keys = random.site_keys(1 + cast(Encoder, encoder).num_sites, device)
    return keys[0], keys[1:]


def attention_mask(attention_mask_BL: Tensor | None, block_ids_BL: Tensor | None) -> Tensor | None:
    """Which keys a query may read: bool [B, 1, 1, L], with blocks [B, 1, L, L], or None for all.

    Padding is a block too, so that no query is left without a key: that would give NaN.
    """
    if block_ids_BL is not None:
        return (block_ids_BL[:, :, None] == block_ids_BL[:, None, :]).unsqueeze(1)
    return None if attention_mask_BL is None else attention_mask_BL[:, None, None, :]


def causal_mask(
    mask_B1QL: Tensor | None, length: int, direction: Direction, device: torch.device
) -> Tensor:
    """The mask without what is ahead in a direction: bool [1 or B, 1, L, L].

    A token reads itself in every case. With padding that must be masked, give blocks: a query of
    padding may have no real token on its side.
    """
    may_LL = torch.ones(length, length, dtype=torch.bool, device=device)
    may_LL = may_LL.tril() if direction == "left_to_right" else may_LL.triu()
    return may_LL[None, None] if mask_B1QL is None else mask_B1QL & may_LL
