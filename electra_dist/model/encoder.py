"""The BERT post-LN encoder that both towers use (Devlin et al. 2019).

Shapes: B rows, L positions, T tokens of all rows (B L, or the real ones alone), D hidden width,
E embedding width, F = 4 D, H heads, A = D / H, S dropout sites, V vocabulary.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from electra_dist.config.schema import ModelConfig
from electra_dist.model import ops, random
from electra_dist.model.gelu import gelu
from electra_dist.model.linear import linear
from electra_dist.model.padding import WordTable
from electra_dist.model.places import in_rows, tokens_of
from electra_dist.model.stack import SITES_PER_LAYER, Layout, run_layers

Direction = Literal["both", "left_to_right", "right_to_left"]


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
