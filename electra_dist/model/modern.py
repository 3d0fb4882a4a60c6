"""The `modern` backbone: rotary positions, pre-norm, GeGLU, no biases, local and global attention.

Layer by layer it is ModernBERT (Warner et al. 2024), so that transformers' ModernBertModel computes
the same numbers from the same weights. Two things are ELECTRA's: tables shared by towers of
different widths, and dropout at ELECTRA's sites.

    word table (E wide, shared) -> embeddings_project (no bias, where D is not E) -> norm -> dropout
    layer: x + attention(norm(x)), the first without norm; x + GeGLU(norm(x)); a norm at the end

Nothing but a product lies between table and projection: their product is ModernBERT's own table.

Shapes: B rows, L positions, T tokens of all rows (B L, or the real ones alone), D hidden width,
E embedding width, F inner width, H heads, A = D / H, P = A / 2 pairs, S dropout sites.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from electra_dist.config.schema import ModelConfig
from electra_dist.model import ops
from electra_dist.model.encoder import attention_mask
from electra_dist.model.padding import WordTable, vocabulary_logits
from electra_dist.model.places import in_rows, tokens_of
from electra_dist.model.stack import SITES_PER_LAYER, Layout, run_layers


class Embeddings(nn.Module):
    """The word table. Positions turn queries and keys, segments are told by [SEP] alone."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.word = WordTable(config, vocab_size)

    def forward(
        self,
        input_ids_BL: Tensor,
        *_types_positions_key: Tensor | None,
    ) -> Tensor:
        """Rows of the table, [B, L, E]; what else `encoder.Embeddings` is given is not read.

        Norm and dropout follow in the tower, behind its projection.
        """
        embedded_BLE: Tensor = self.word(input_ids_BL)
        return embedded_BLE


class Angles(NamedTuple):
    """Rotation of each position and pair of elements: [1 or B, L, 1, 1, P]."""

    cos: Tensor
    sin: Tensor


class Layer(nn.Module):
    """x + attention(norm(x)), then x + GeGLU(norm(x)); whether local or global, the layout says."""

    def __init__(
        self, config: ModelConfig, width: int, num_heads: int, *, is_first: bool, num_layers: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = config.inner_width(width)
        self.attention_layer_norm = None if is_first else layer_norm(config, width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.ffn_layer_norm = layer_norm(config, width)
        self.ffn_in = nn.Linear(width, 2 * inner, bias=False)
        self.ffn_out = nn.Linear(inner, width, bias=False)
        # As ModernBERT starts: the sum of 2 n residuals then keeps its size.
        for output in (self.attention_output, self.ffn_out):
            output.weight.init_factor = (2 * num_layers) ** -0.5  # type: ignore[attr-defined]
        self.hidden_dropout = config.hidden_dropout
        self.attention_dropout = config.attention_dropout

    def forward(self, hidden_TD: Tensor, layout: Layout, noise_S: Tensor | None = None) -> Tensor:
        """One layer; `noise_S` is that of its dropout sites, None for no dropout."""
        weights_noise, attended_noise, out_noise = (
            (None,) * 3 if noise_S is None else noise_S.unbind(0)
        )
        normed_TD = hidden_TD
        if self.attention_layer_norm is not None:
            normed_TD = self.attention_layer_norm(hidden_TD)
        attended_TD = self.attention_output(self._attend(normed_TD, layout, weights_noise))
        hidden_TD = ops.add_dropped(hidden_TD, attended_TD, self.hidden_dropout, attended_noise)
        inner_TF, gate_TF = self.ffn_in(self.ffn_layer_norm(hidden_TD)).chunk(2, dim=-1)
        out_TD = self.ffn_out(F.gelu(inner_TF) * gate_TF)
        return ops.add_dropped(hidden_TD, out_TD, self.hidden_dropout, out_noise)

    def _attend(self, normed_TD: Tensor, layout: Layout, noise: Tensor | None) -> Tensor:
        """Attention within rows: what is left out of T stands as zeros that no token reads."""
        width = normed_TD.shape[-1]
        qkv = in_rows(self.qkv(normed_TD), layout.num_rows, layout.length, layout.places_T)
        qkv_BL3HA = qkv.view(*qkv.shape[:2], 3, self.num_heads, width // self.num_heads)
        assert layout.angles is not None
        rotated_BL3HA: Tensor = _Rotate.apply(qkv_BL3HA, *layout.angles)
        context_BLD = ops.attention(rotated_BL3HA, layout.bias_B1QL, self.attention_dropout, noise)
        return tokens_of(context_BLD, layout.places_T)


class Encoder(nn.Module):
    """Projection (where the embedding width is not the tower's), norm, layers, norm."""

    def __init__(self, config: ModelConfig, num_layers: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.config = config
        self.head_width = width // num_heads
        self.embeddings_project = (
            nn.Linear(config.embedding_size, width, bias=False)
            if config.embedding_size != width
            else None
        )
        self.embeddings_layer_norm = layer_norm(config, width)
        self.layers = nn.ModuleList(
            Layer(config, width, num_heads, is_first=number == 0, num_layers=num_layers)
            for number in range(num_layers)
        )
        self.final_layer_norm = layer_norm(config, width)
        self.recompute = False
        """Keep each layer's input only and compute the layer again in the backward pass."""
        self.compiled = False
        """Run the layers through torch.compile."""

    @property
    def num_sites(self) -> int:
        """Dropout sites: of the embeddings and of all layers."""
        return 1 + SITES_PER_LAYER * len(self.layers)

    def forward(
        self,
        embedded_BLE: Tensor,
        attention_mask_BL: Tensor | None,
        block_ids_BL: Tensor | None = None,
        places_T: Tensor | None = None,
        keys_S: Tensor | None = None,
        position_ids_BL: Tensor | None = None,
    ) -> Tensor:
        """Contextual vectors [B, L, D]; arguments as those of `encoder.Encoder`."""
        num_rows, length, _ = embedded_BLE.shape
        hidden_TD = tokens_of(embedded_BLE, places_T)
        if self.embeddings_project is not None:
            hidden_TD = self.embeddings_project(hidden_TD)
        key = None if keys_S is None else keys_S[0]
        hidden_TD = self.embeddings_layer_norm(hidden_TD)
        hidden_TD = ops.dropout(hidden_TD, self.config.hidden_dropout, key)
        config = self.config
        far = attention_mask(attention_mask_BL, block_ids_BL)
        near = local_mask(
            attention_mask_BL, block_ids_BL, length, config.local_attention_window, hidden_TD.device
        )
        everywhere, nearby = (
            Layout(
                num_rows,
                length,
                ops.attention_bias(mask, hidden_TD),
                places_T,
                self._angles(theta, hidden_TD, length, position_ids_BL),
            )
            for mask, theta in ((far, config.rope_theta), (near, config.local_rope_theta))
        )
        every = config.global_attention_every
        hidden_TD = run_layers(
            self.layers,
            hidden_TD,
            [nearby if number % every else everywhere for number in range(len(self.layers))],
            None if keys_S is None else keys_S[1:],
            recompute=self.recompute,
            compiled=self.compiled,
        )
        return in_rows(self.final_layer_norm(hidden_TD), num_rows, length, places_T)

    def _angles(
        self, theta: float, like: Tensor, length: int, position_ids_BL: Tensor | None
    ) -> Angles:
        """In float32, as transformers has them: position x theta^(-2 i / A) of pair i."""
        pairs = torch.arange(0, self.head_width, 2, dtype=torch.float32, device=like.device)
        frequency_P = 1.0 / theta ** (pairs / self.head_width)
        if position_ids_BL is None:  # one row for the whole batch
            position_ids_BL = torch.arange(length, device=like.device)[None]
        angle_BLP = position_ids_BL[..., None].float() * frequency_P
        angle_BL11P = angle_BLP[:, :, None, None]
        return Angles(angle_BL11P.cos().to(like.dtype), angle_BL11P.sin().to(like.dtype))


class GeneratorHead(nn.Module):
    """Dense, GELU, norm; to the embedding width where it is another; word table, a bias of V."""

    def __init__(self, config: ModelConfig, width: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width, bias=False)
        self.layer_norm = layer_norm(config, width)
        self.project = (
            nn.Linear(width, config.embedding_size, bias=False)
            if config.embedding_size != width
            else None
        )
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden_BND: Tensor, word_table_RE: Tensor) -> Tensor:
        """Logits at the given positions: [B, N, R], -inf beyond the vocabulary."""
        projected_BNE = self.layer_norm(F.gelu(self.dense(hidden_BND)))
        if self.project is not None:
            projected_BNE = self.project(projected_BNE)
        return vocabulary_logits(projected_BNE, word_table_RE, self.bias)


class DiscriminatorHead(nn.Module):
    """Dense, GELU, norm and one logit at every position."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width, bias=False)
        self.layer_norm = layer_norm(config, width)
        self.out = nn.Linear(width, 1)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Logits [B, L] of "this token was replaced"."""
        logits_BL1: Tensor = self.out(self.layer_norm(F.gelu(self.dense(hidden_BLD))))
        return logits_BL1.squeeze(-1)


def layer_norm(config: ModelConfig, width: int) -> nn.LayerNorm:
    """Without a bias."""
    return nn.LayerNorm(width, eps=config.layer_norm_eps, bias=False)


def local_mask(
    attention_mask_BL: Tensor | None,
    block_ids_BL: Tensor | None,
    length: int,
    window: int,
    device: torch.device,
) -> Tensor | None:
    """What a query of a local layer may read: at most window / 2 places away, in its own block.

    Where that is the whole row it is the global mask, and without padding or blocks one mask
    [1, 1, L, L] serves all rows. Padding is a block too: no query is left without a key.
    """
    if length <= window // 2 + 1:
        return attention_mask(attention_mask_BL, block_ids_BL)
    place_L = torch.arange(length, device=device)
    near_LL = (place_L[:, None] - place_L[None, :]).abs() <= window // 2
    blocks_BL = attention_mask_BL if block_ids_BL is None else block_ids_BL
    same_B1LL = attention_mask(None, blocks_BL)
    return near_LL[None, None] if same_B1LL is None else same_B1LL & near_LL


class _Rotate(torch.autograd.Function):
    """Turns pairs (i, i + A / 2) of queries and keys; the gradient is turned back: nothing kept."""

    @staticmethod
    def forward(ctx: Any, qkv_BL3HA: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(qkv_BL3HA, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BL3HA: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient_BL3HA, cos, sin, -1.0), None, None


def _rotated(qkv_BL3HA: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """A new tensor: queries and keys turned by sign x angle, values as they are."""
    first, second = qkv_BL3HA[:, :, :2].chunk(2, dim=-1)
    if torch.compiler.is_compiling():  # a part of a tensor as `out=` would end its graph
        turned = first * cos - sign * second * sin, second * cos + sign * first * sin
        return torch.cat([torch.cat(turned, dim=-1), qkv_BL3HA[:, :, 2:]], dim=2)
    out_BL3HA = torch.empty_like(qkv_BL3HA, memory_format=torch.contiguous_format)
    out_BL3HA[:, :, 2] = qkv_BL3HA[:, :, 2]
    first_out, second_out = out_BL3HA[:, :, :2].chunk(2, dim=-1)
    torch.mul(first, cos, out=first_out).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=second_out).addcmul_(first, sin, value=sign)
    return out_BL3HA
