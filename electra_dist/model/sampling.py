"""Replacements: how they are drawn from the generator's probabilities, and put into the rows.

Shapes: B rows, L positions, N masked slots of a row, V vocabulary, R >= V rows of the word table,
K blocks, C ids of a block.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from electra_dist.model.batch import Batch

_BLOCK = 128
"""Ids of which the probabilities are added up before the cumulative sum."""


def sample_tokens(
    logits_BNR: Tensor,
    uniforms_BN: Tensor,
    temperature: float,
    vocab_size: int | None = None,
) -> Tensor:
    """Exact samples of softmax(logits / temperature), [B, N] ids, by inverting the cumulative one.

    One uniform number a slot costs far less than V exponentials (12 % of a step of `small` on a
    CPU). Of R logits those beyond `vocab_size`, which are -inf, are never drawn.
    """
    dtype = torch.promote_types(logits_BNR.dtype, torch.float32)
    scaled_BNR = logits_BNR if temperature == 1.0 else logits_BNR.to(dtype) / temperature
    probs_BNR = torch.softmax(scaled_BNR, dim=-1, dtype=dtype)
    return invert_cumulative(probs_BNR[..., :vocab_size], uniforms_BN)


def invert_cumulative(probs_BNV: Tensor, uniforms_BN: Tensor) -> Tensor:
    """The first id at which the cumulative sum of its probabilities exceeds the uniform number.

    First among blocks of ids, then within the block: a sum over V is one vectorised pass, a
    cumulative one a chain of V additions.
    """
    vocab_size = probs_BNV.shape[-1]
    num_whole = vocab_size // _BLOCK * _BLOCK
    whole_BNK = probs_BNV[..., :num_whole].unflatten(-1, (-1, _BLOCK)).sum(-1)
    rest_BN1 = probs_BNV[..., num_whole:].sum(-1, keepdim=True)
    blocks_BNK = torch.cat([whole_BNK, rest_BN1], dim=-1)
    block_BN1, left_BN1 = _invert(blocks_BNK, uniforms_BN.unsqueeze(-1))
    ids_BNC = block_BN1 * _BLOCK + torch.arange(_BLOCK, device=probs_BNV.device)
    inside_BNC = probs_BNV.gather(-1, ids_BNC.clamp(max=vocab_size - 1))
    inside_BNC = inside_BNC.masked_fill_(ids_BNC >= vocab_size, 0.0)
    offset_BN1, _ = _invert(inside_BNC, left_BN1)
    return (block_BN1 * _BLOCK + offset_BN1).squeeze(-1).clamp_(max=vocab_size - 1)


def _invert(weights_BNK: Tensor, uniforms_BN1: Tensor) -> tuple[Tensor, Tensor]:
    """Indices drawn in proportion to the weights, and the uniform numbers within what was drawn."""
    cumulative_BNK = _cumulative(weights_BNK)
    # Scaled by the last entry, which rounding leaves a little off 1: no draw falls beyond the end.
    targets_BN1 = uniforms_BN1 * cumulative_BNK[..., -1:]
    index_BN1 = torch.searchsorted(cumulative_BNK, targets_BN1, right=True)
    index_BN1 = index_BN1.clamp_(max=weights_BNK.shape[-1] - 1)
    ends_BN1 = cumulative_BNK.gather(-1, index_BN1)
    below_BN1 = cumulative_BNK.gather(-1, (index_BN1 - 1).clamp_(min=0)).masked_fill_(
        index_BN1 == 0, 0.0
    )
    left_BN1 = (targets_BN1 - below_BN1) / (ends_BN1 - below_BN1)
    return index_BN1, left_BN1.clamp_(0.0, 1.0 - 2.0**-24)


def _cumulative(weights_BNK: Tensor) -> Tensor:
    """Sums up to each entry.

    Where kernels must be deterministic torch refuses every cumsum of floats on CUDA, because of the
    one over a single row (github.com/pytorch/pytorch/issues/75240). Of many rows each is added up
    by one block of threads, always in the same order.
    """
    if not (weights_BNK.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return weights_BNK.cumsum(dim=-1)
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        return weights_BNK.cumsum(dim=-1)
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warns_only)


def replace_tokens(batch: Batch, sampled_ids_BN: Tensor) -> Tensor:
    """The unmasked rows with the samples at all selected positions, kept ones included; [B, L].

    A position that was drawn twice gets the floored mean of its samples, as google-research/electra
    has it (only sampling with replacement makes one); an unused slot (weight 0) changes nothing.
    """
    used_BN = batch.masked_weights_BN.to(torch.int64)
    sums_BL = _sum_by_position(batch, sampled_ids_BN * used_BN)
    counts_BL = _sum_by_position(batch, used_BN)
    return torch.where(counts_BL > 0, sums_BL // counts_BL.clamp(min=1), batch.input_ids_BL)


def selected_positions(batch: Batch) -> Tensor:
    """Whether a position was selected for masking, bool [B, L]; unused slots select nothing."""
    return _sum_by_position(batch, batch.masked_weights_BN.to(torch.int64)) > 0


def _sum_by_position(batch: Batch, numbers_BN: Tensor) -> Tensor:
    """The slots' numbers added up where they lie in the rows, int64 [B, L]."""
    zeros_BL = torch.zeros_like(batch.input_ids_BL)
    return zeros_BL.scatter_add(1, batch.masked_positions_BN, numbers_BN)


def sample_uniformly(uniforms_BN: Tensor, vocab_size: int, left_out: Collection[int]) -> Tensor:
    """Ids [B, N], each of the vocabulary but those left out with the same probability."""
    num_ids = vocab_size - len(set(left_out))
    # In float64: float32 has 24 bits, and rounds u (V - S) up to V - S at its end.
    ids_BN = (uniforms_BN.double() * num_ids).long()
    for special in sorted(set(left_out)):
        ids_BN += ids_BN >= special
    return ids_BN
