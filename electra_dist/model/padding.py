"""Word tables whose number of rows is a multiple of what matrix products like (64 by default).

The rows beyond the vocabulary are zeros and stay zeros: no id looks them up, and their logits are
-inf (`heads`), so no gradient, sample or loss ever meets them. Checkpoints, exports and counts of
parameters know the vocabulary alone: whoever reads or writes parameters goes through here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_dist.config.schema import ModelConfig


class WordTable(nn.Embedding):
    """`vocab_size` rows of the embedding width, and rows of zeros up to the multiple."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config.padded(vocab_size), config.embedding_size)
        self.num_ids = vocab_size


def stored_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter by name, of word tables the rows of the vocabulary alone: views, detached."""
    rows = {
        f"{name}.weight": one.num_ids
        for name, one in module.named_modules(remove_duplicate=False)
        if isinstance(one, WordTable)
    }
    return {
        name: parameter.detach()[: rows[name]] if name in rows else parameter.detach()
        for name, parameter in module.named_parameters()
    }


def stored_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes as checkpoints know them."""
    return {name: tuple(value.shape) for name, value in stored_parameters(module).items()}


@torch.no_grad()
def clear_padding(module: nn.Module) -> None:
    """Make the rows beyond the vocabulary zeros."""
    for one in module.modules():
        if isinstance(one, WordTable) and not one.weight.is_meta:
            one.weight[one.num_ids :].zero_()


def vocabulary_logits(hidden_BNE: Tensor, word_table_RE: Tensor, bias_V: Tensor) -> Tensor:
    """Products with all R rows of a word table, plus the bias: [B, N, R], -inf beyond V.

    The bias is padded, not the logits: that costs R numbers and not as many a slot.
    """
    padding = word_table_RE.shape[0] - bias_V.shape[0]
    if padding:
        bias_V = F.pad(bias_V, (0, padding), value=float("-inf"))
    return F.linear(hidden_BNE, word_table_RE, bias_V)
