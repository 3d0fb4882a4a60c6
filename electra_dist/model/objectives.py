"""What is learnt from a batch. Another objective is a function here and a line in OBJECTIVES.

Shapes: B rows, L positions, N masked slots of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_dist.errors import UserError
from electra_dist.model import ops
from electra_dist.model.batch import Batch, Losses

if TYPE_CHECKING:
    from electra_dist.model.electra import JointElectra


_BLOCK = 128
"""Ids of which the probabilities are added up before the cumulative sum."""


def sample_tokens(log_probs_BNV: Tensor, uniforms_BN: Tensor, temperature: float) -> Tensor:
    """Exact samples of softmax(logits / temperature), [B, N] ids, by inverting the cumulative one.

    One uniform number a slot costs far less than V exponentials (12 % of a step of `small` on a
    CPU).
    """
    probs_BNV = (
        log_probs_BNV.exp()
        if temperature == 1.0
        else torch.softmax(log_probs_BNV / temperature, dim=-1)
    )
    return invert_cumulative(probs_BNV, uniforms_BN)


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
    cumulative_BNK = weights_BNK.cumsum(dim=-1)
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


def replace_tokens(batch: Batch, sampled_ids_BN: Tensor) -> Tensor:
    """The unmasked rows with the samples at all selected positions, kept ones included; [B, L].

    A position that was drawn twice gets the floored mean of its samples, as google-research/electra
    has it (only sampling with replacement makes one); an unused slot (weight 0) changes nothing.
    """
    used_BN = batch.masked_weights_BN.to(torch.int64)
    zeros_BL = torch.zeros_like(batch.input_ids_BL)
    sums_BL = zeros_BL.scatter_add(1, batch.masked_positions_BN, sampled_ids_BN * used_BN)
    counts_BL = zeros_BL.scatter_add(1, batch.masked_positions_BN, used_BN)
    return torch.where(counts_BL > 0, sums_BL // counts_BL.clamp(min=1), batch.input_ids_BL)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1.0)


class _MaskedLm(NamedTuple):
    """What the generator says of a batch."""

    loss: Tensor
    """Scalar with graph: mean over masked slots."""
    log_probs_BNV: Tensor
    probs_BNV: Tensor
    originals_BN: Tensor


def _masked_lm(model: JointElectra, batch: Batch) -> _MaskedLm:
    logits_BNV = model.generator(
        batch.masked_ids_BL,
        batch.token_type_ids_BL,
        batch.attention_mask_BL,
        batch.masked_positions_BN,
        batch.block_ids_BL,
        batch.position_ids_BL,
        batch.places_T,
    )
    originals_BN = batch.input_ids_BL.gather(1, batch.masked_positions_BN)
    losses_BN, log_probs_BNV, probs_BNV = ops.cross_entropy(logits_BNV, originals_BN)
    loss = _mean(losses_BN, batch.masked_weights_BN)
    return _MaskedLm(loss, log_probs_BNV, probs_BNV, originals_BN)


def electra(model: JointElectra, batch: Batch) -> Losses:
    """Generator loss + replaced-token detection on its samples; no gradient through sampling."""
    objective = model.objective
    generator_loss, log_probs_BNV, probs_BNV, originals_BN = _masked_lm(model, batch)
    sampled_ids_BN = batch.sampled_ids_BN
    if sampled_ids_BN is None and objective.temperature == 1.0:
        sampled_ids_BN = invert_cumulative(probs_BNV, batch.uniforms_BN)
    elif sampled_ids_BN is None:
        sampled_ids_BN = sample_tokens(log_probs_BNV, batch.uniforms_BN, objective.temperature)
    corrupted_BL = replace_tokens(batch, sampled_ids_BN)
    labels_BL = corrupted_BL != batch.input_ids_BL

    assert model.discriminator is not None
    logits_BL = model.discriminator(
        corrupted_BL,
        batch.token_type_ids_BL,
        batch.attention_mask_BL,
        batch.block_ids_BL,
        batch.position_ids_BL,
        batch.places_T,
    ).float()
    bce_BL = F.binary_cross_entropy_with_logits(logits_BL, labels_BL.float(), reduction="none")
    discriminator_loss = (
        bce_BL.mean()
        if batch.attention_mask_BL is None
        else _mean(bce_BL, batch.attention_mask_BL.float())
    )
    total = objective.gen_weight * generator_loss + objective.disc_weight * discriminator_loss
    replaced_BN = (sampled_ids_BN != originals_BN).float()
    return Losses(
        total=total,
        generator=generator_loss.detach(),
        discriminator=discriminator_loss.detach(),
        replaced_share=_mean(replaced_BN, batch.masked_weights_BN),
        generator_log_probs_BNV=log_probs_BNV,
        sampled_ids_BN=sampled_ids_BN,
        discriminator_logits_BL=logits_BL.detach(),
        labels_BL=labels_BL,
    )


def mlm(model: JointElectra, batch: Batch) -> Losses:
    """BERT's masked language model, same rows and masks: one tower of the discriminator's size."""
    loss, log_probs_BNV, _, originals_BN = _masked_lm(model, batch)
    zero = torch.zeros((), device=loss.device)
    return Losses(
        total=loss * model.objective.gen_weight,
        generator=loss.detach(),
        discriminator=zero,
        replaced_share=zero,
        generator_log_probs_BNV=log_probs_BNV,
        sampled_ids_BN=originals_BN,
    )


class Objective(NamedTuple):
    """A loss over the joint module, and whether it needs the discriminator tower."""

    loss: Callable[[JointElectra, Batch], Losses]
    has_discriminator: bool


OBJECTIVES: dict[str, Objective] = {
    "electra": Objective(electra, has_discriminator=True),
    "mlm": Objective(mlm, has_discriminator=False),
}


def objective_named(name: str) -> Objective:
    """The entry of `OBJECTIVES`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in OBJECTIVES:
        raise UserError(
            f"objective.name = {name!r} is unknown; choose one of {', '.join(OBJECTIVES)}"
        )
    return OBJECTIVES[name]
