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
from electra_dist.model.batch import Batch, Losses

if TYPE_CHECKING:
    from electra_dist.model.electra import JointElectra


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
    cumulative_BNV = probs_BNV.cumsum(dim=-1)
    # Scaled by the last entry, which rounding leaves a little off 1: no draw falls beyond the end.
    targets_BN1 = uniforms_BN.unsqueeze(-1) * cumulative_BNV[..., -1:]
    ids_BN1 = torch.searchsorted(cumulative_BNV, targets_BN1, right=True)
    return ids_BN1.squeeze(-1).clamp_(max=log_probs_BNV.shape[-1] - 1)


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


def _masked_lm(model: JointElectra, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss over masked slots, log-probabilities [B, N, V] with graph, original ids [B, N]."""
    logits_BNV = model.generator(
        batch.masked_ids_BL,
        batch.token_type_ids_BL,
        batch.attention_mask_BL,
        batch.masked_positions_BN,
        batch.block_ids_BL,
        batch.position_ids_BL,
    )
    log_probs_BNV = F.log_softmax(logits_BNV.float(), dim=-1)
    originals_BN = batch.input_ids_BL.gather(1, batch.masked_positions_BN)
    losses_BN = -log_probs_BNV.gather(-1, originals_BN.unsqueeze(-1)).squeeze(-1)
    return _mean(losses_BN, batch.masked_weights_BN), log_probs_BNV, originals_BN


def electra(model: JointElectra, batch: Batch) -> Losses:
    """Generator loss + replaced-token detection on its samples; no gradient through sampling."""
    objective = model.objective
    generator_loss, log_probs_BNV, originals_BN = _masked_lm(model, batch)
    log_probs_BNV = log_probs_BNV.detach()
    sampled_ids_BN = batch.sampled_ids_BN
    if sampled_ids_BN is None:
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
    loss, log_probs_BNV, originals_BN = _masked_lm(model, batch)
    zero = torch.zeros((), device=loss.device)
    return Losses(
        total=loss * model.objective.gen_weight,
        generator=loss.detach(),
        discriminator=zero,
        replaced_share=zero,
        generator_log_probs_BNV=log_probs_BNV.detach(),
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
