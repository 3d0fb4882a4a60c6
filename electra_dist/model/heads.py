"""What stands on top of ELECTRA's own encoder (as google-research/electra has it).

Shapes: B rows, L positions, N masked slots of a row, D tower width, E embedding width, R rows of
the word table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_dist.config.schema import ModelConfig
from electra_dist.model.padding import vocabulary_logits


class GeneratorHead(nn.Module):
    """Dense to the embedding width, GELU, LayerNorm, product with the word table, a bias of V."""

    def __init__(self, config: ModelConfig, width: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.embedding_size)
        self.layer_norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden_BND: Tensor, word_table_RE: Tensor) -> Tensor:
        """Logits at the given positions: [B, N, R], -inf beyond the vocabulary."""
        projected_BNE = self.layer_norm(F.gelu(self.dense(hidden_BND)))
        return vocabulary_logits(projected_BNE, word_table_RE, self.bias)


class DiscriminatorHead(nn.Module):
    """Dense, GELU and one logit at every position."""

    def __init__(self, _config: ModelConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Logits [B, L] of "this token was replaced"."""
        logits_BL1: Tensor = self.out(F.gelu(self.dense(hidden_BLD)))
        return logits_BL1.squeeze(-1)
