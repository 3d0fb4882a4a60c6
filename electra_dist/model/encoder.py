"""The BERT post-LN encoder that both towers use (algorithm: section 2).

Shapes: B rows, L positions, D hidden width, E embedding width, H heads, A = D / H, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_dist.config.schema import ModelConfig


class Embeddings(nn.Module):
    """Word + token type + learned position, LayerNorm, dropout: shared by the towers.

    All of the embedding width.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        width = config.embedding_size
        self.word = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(config.max_position_embeddings, width)
        self.token_type = nn.Embedding(config.type_vocab_size, width)
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout

    def forward(
        self,
        input_ids_BL: Tensor,
        token_type_ids_BL: Tensor,
        position_ids_BL: Tensor | None = None,
    ) -> Tensor:
        """Embed a batch of ids; returns [B, L, E]. Without position ids they are 0 to L - 1."""
        if position_ids_BL is None:  # one row for the whole batch
            position_ids_BL = torch.arange(input_ids_BL.shape[1], device=input_ids_BL.device)
        embedded_BLE = (
            self.word(input_ids_BL)
            + self.token_type(token_type_ids_BL)
            + self.position(position_ids_BL)
        )
        return F.dropout(self.layer_norm(embedded_BLE), self.dropout, self.training)


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

    def forward(self, hidden_BLD: Tensor, mask_B1QL: Tensor | None) -> Tensor:
        """One layer; `mask_B1QL` (Q: 1 or L) is True where a query may read a key, None: always."""
        attended_BLD = F.dropout(
            self.attention_output(self._attend(hidden_BLD, mask_B1QL)),
            self.hidden_dropout,
            self.training,
        )
        hidden_BLD = self.attention_layer_norm(hidden_BLD + attended_BLD)
        inner_BLF = F.gelu(self.ffn_in(hidden_BLD))
        out_BLD = F.dropout(self.ffn_out(inner_BLF), self.hidden_dropout, self.training)
        normed_BLD: Tensor = self.ffn_layer_norm(hidden_BLD + out_BLD)
        return normed_BLD

    def _attend(self, hidden_BLD: Tensor, mask_B1QL: Tensor | None) -> Tensor:
        batch, length, width = hidden_BLD.shape
        qkv_3BHLA = (
            self.qkv(hidden_BLD)
            .view(batch, length, 3, self.num_heads, width // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        query_BHLA, key_BHLA, value_BHLA = qkv_3BHLA.unbind(0)
        context_BHLA = F.scaled_dot_product_attention(
            query_BHLA,
            key_BHLA,
            value_BHLA,
            attn_mask=mask_B1QL,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        return context_BHLA.transpose(1, 2).reshape(batch, length, width)


class Encoder(nn.Module):
    """`embeddings_project` (where the embedding width is not the tower's) and a stack of layers."""

    def __init__(self, config: ModelConfig, num_layers: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.embeddings_project = (
            nn.Linear(config.embedding_size, width) if config.embedding_size != width else None
        )
        self.layers = nn.ModuleList(Layer(config, width, num_heads) for _ in range(num_layers))

    def forward(
        self,
        embedded_BLE: Tensor,
        attention_mask_BL: Tensor | None,
        block_ids_BL: Tensor | None = None,
    ) -> Tensor:
        """Contextual vectors [B, L, D].

        `attention_mask_BL` is bool, True at real tokens, or None where nothing is padded. With
        `block_ids_BL` (0 at padding) a token attends to tokens of its own block only.
        """
        hidden_BLD = (
            embedded_BLE
            if self.embeddings_project is None
            else self.embeddings_project(embedded_BLE)
        )
        mask_B1QL = attention_mask(attention_mask_BL, block_ids_BL)
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD, mask_B1QL)
        return hidden_BLD


def attention_mask(attention_mask_BL: Tensor | None, block_ids_BL: Tensor | None) -> Tensor | None:
    """Which keys a query may read: bool [B, 1, 1, L], with blocks [B, 1, L, L], or None for all.

    Padding is a block too, so that no query is left without a key: that would give NaN.
    """
    if block_ids_BL is not None:
        return (block_ids_BL[:, :, None] == block_ids_BL[:, None, :]).unsqueeze(1)
    return None if attention_mask_BL is None else attention_mask_BL[:, None, None, :]
