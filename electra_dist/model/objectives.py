"""What is learnt from a batch. Another objective is a function here and a line in OBJECTIVES.

Shapes: B rows, L positions, N masked slots of a row, V vocabulary, R >= V rows of the word table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_dist.errors import UserError
from electra_dist.model import ops
from electra_dist.model.batch import Batch, Losses
from electra_dist.model.sampling import (
    invert_cumulative,
    replace_tokens,
    sample_tokens,
    sample_uniformly,
    selected_positions,
)

if TYPE_CHECKING:
    from electra_dist.model.electra import Generator, JointElectra
    from electra_dist.model.two_towers import TwoTowerGenerator


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1.0)


class _MaskedLm(NamedTuple):
    """What the generator says of a batch."""

    loss: Tensor
    """Scalar with graph: mean over masked slots."""
    logits_BNR: Tensor
    probs_BNV: Tensor
    originals_BN: Tensor


def _masked_lm(model: JointElectra, batch: Batch) -> _MaskedLm:
    logits_BNR = masked_logits(model, batch)
    originals_BN = batch.input_ids_BL.gather(1, batch.masked_positions_BN)
    losses_BN, _, probs_BNV = ops.cross_entropy(logits_BNR, originals_BN, model.vocab_size)
    loss = _mean(losses_BN, batch.masked_weights_BN)
    return _MaskedLm(loss, logits_BNR.detach(), probs_BNV, originals_BN)


def masked_logits(model: JointElectra, batch: Batch, *, drops: bool = True) -> Tensor:
    """The generator's logits at the masked slots [B, N, R]; without `drops` no dropout."""
    logits_BNR: Tensor = cast("Generator", model.generator)(
        batch.masked_ids_BL,
        batch.token_type_ids_BL,
        batch.attention_mask_BL,
        batch.masked_positions_BN,
        batch.block_ids_BL,
        batch.position_ids_BL,
        batch.places_T,
        drops=drops,
        with_padding=True,
    )
    return logits_BNR


class _Generated(NamedTuple):
    """What goes on from the generator to the discriminator; in training the logits end here."""

    loss: Tensor
    """Scalar with graph."""
    sampled_ids_BN: Tensor
    logits_BNV: Tensor | None
    """At the masked slots; None in training."""


def _generated(model: JointElectra, batch: Batch) -> _Generated:
    said = _masked_lm(model, batch)
    sampled_ids_BN = batch.sampled_ids_BN
    if sampled_ids_BN is None:
        sampled_ids_BN = _sampled(model, batch, said)
    return _Generated(said.loss, sampled_ids_BN, _shown(model, said))


def _shown(model: JointElectra, said: _MaskedLm) -> Tensor | None:
    """Logits of the vocabulary for evaluation; training has no use for so many numbers."""
    return None if model.training else said.logits_BNR[..., : model.vocab_size]


@torch.no_grad()
def _sampled(model: JointElectra, batch: Batch, said: _MaskedLm) -> Tensor:
    """Replacements [B, N] from the generator's softmax, as the knobs of the objective say."""
    objective = model.objective
    temperature = objective.temperature_at(batch.step)
    logits_BNR = said.logits_BNR
    draws_again = model.training and not objective.sampling_dropout
    if draws_again:
        logits_BNR = masked_logits(model, batch, drops=False)
    if objective.disallow_correct:
        # Before a softmax, not after it: where the original has all of the probability that float32
        # can hold, those of the others are 0.
        originals_BN1 = said.originals_BN.unsqueeze(-1)
        logits_BNR = logits_BNR.scatter(-1, originals_BN1, float("-inf"))
    elif temperature == 1.0 and not draws_again:
        return invert_cumulative(said.probs_BNV, batch.uniforms_BN)
    return sample_tokens(logits_BNR, batch.uniforms_BN, temperature, model.vocab_size)


class _Judged(NamedTuple):
    """What the discriminator says of the corrupted rows."""

    loss: Tensor
    """Scalar with graph: mean over all real tokens."""
    logits_BL: Tensor


def _discriminator_logits(model: JointElectra, batch: Batch, corrupted_BL: Tensor) -> Tensor:
    assert model.discriminator is not None
    logits_BL: Tensor = model.discriminator(
        corrupted_BL,
        batch.token_type_ids_BL,
        batch.attention_mask_BL,
        batch.block_ids_BL,
        batch.position_ids_BL,
        batch.places_T,
    )
    return logits_BL.float()


def _judged(batch: Batch, logits_BL: Tensor, labels_BL: Tensor) -> _Judged:
    bce_BL = F.binary_cross_entropy_with_logits(logits_BL, labels_BL.float(), reduction="none")
    loss = (
        bce_BL.mean()
        if batch.attention_mask_BL is None
        else _mean(bce_BL, batch.attention_mask_BL.float())
    )
    return _Judged(loss, logits_BL)


def electra(model: JointElectra, batch: Batch) -> Losses:
    """Generator loss + replaced-token detection on its samples; no gradient through sampling."""
    said = _generated(model, batch)
    corrupted_BL = replace_tokens(batch, said.sampled_ids_BN)
    labels_BL = corrupted_BL != batch.input_ids_BL
    judged = _judged(batch, _discriminator_logits(model, batch, corrupted_BL), labels_BL)
    return _joint_losses(
        model, batch, judged, labels_BL, said.sampled_ids_BN, said.loss, said.logits_BNV
    )


def _joint_losses(
    model: JointElectra,
    batch: Batch,
    judged: _Judged,
    labels_BL: Tensor,
    sampled_ids_BN: Tensor,
    generator_loss: Tensor,
    logits_BNV: Tensor | None,
) -> Losses:
    objective = model.objective
    originals_BN = batch.input_ids_BL.gather(1, batch.masked_positions_BN)
    replaced_BN = (sampled_ids_BN != originals_BN).float()
    return Losses(
        total=objective.gen_weight * generator_loss + objective.disc_weight * judged.loss,
        generator=generator_loss.detach(),
        discriminator=judged.loss.detach(),
        replaced_share=_mean(replaced_BN, batch.masked_weights_BN),
        generator_logits_BNV=logits_BNV,
        sampled_ids_BN=sampled_ids_BN,
        discriminator_logits_BL=judged.logits_BL.detach(),
        labels_BL=labels_BL,
    )


def mlm(model: JointElectra, batch: Batch) -> Losses:
    """BERT's masked language model, same rows and masks: one tower of the discriminator's size."""
    said = _masked_lm(model, batch)
    zero = torch.zeros((), device=said.loss.device)
    return Losses(
        total=said.loss * model.objective.gen_weight,
        generator=said.loss.detach(),
        discriminator=zero,
        replaced_share=zero,
        generator_logits_BNV=_shown(model, said),
        sampled_ids_BN=said.originals_BN,
    )


class _Cloze(NamedTuple):
    """What Electric's generator says of a batch; logits at all positions are gone by then."""

    loss: Tensor
    """Scalar with graph: mean over the candidates."""
    sampled_ids_BN: Tensor
    corrupted_BL: Tensor
    log_q_BL: Tensor
    """log q of what stands in the corrupted row, given the other tokens of the original one."""
    logits_BNV: Tensor | None
    """At the masked slots; None in training."""


def _cloze(model: JointElectra, batch: Batch) -> _Cloze:
    ids_BL = batch.input_ids_BL
    logits_BLV = cast("TwoTowerGenerator", model.generator)(
        ids_BL,
        batch.token_type_ids_BL,
        batch.attention_mask_BL,
        batch.block_ids_BL,
        batch.position_ids_BL,
        batch.places_T,
        with_padding=True,
    )
    losses_BL, log_sums_BL1, probs_BLV = ops.cross_entropy(logits_BLV, ids_BL, model.vocab_size)
    loss = _mean(losses_BL, _candidates(model, batch).to(losses_BL.dtype))
    slots_BNV = batch.masked_positions_BN.unsqueeze(-1).expand(-1, -1, model.vocab_size)
    sampled_ids_BN = batch.sampled_ids_BN
    if sampled_ids_BN is None:
        sampled_ids_BN = invert_cumulative(probs_BLV.gather(1, slots_BNV), batch.uniforms_BN)
    corrupted_BL = replace_tokens(batch, sampled_ids_BN)
    logits_BLV = logits_BLV.detach()
    log_q_BL1 = logits_BLV.gather(-1, corrupted_BL.unsqueeze(-1)) - log_sums_BL1
    logits_BNV = None if model.training else logits_BLV.gather(1, slots_BNV)
    return _Cloze(loss, sampled_ids_BN, corrupted_BL, log_q_BL1.squeeze(-1), logits_BNV)


def electric(model: JointElectra, batch: Batch) -> Losses:
    """Electric: noise-contrastive estimation of an energy f(x)_t, a number a token.

    q(x_t | all others) comes from two causal towers over the unmasked row, with a cloze loss at
    every candidate. The logit of "x_t is noise" is f(x)_t + log q(x_t) + log(p / (1 - p)), with no
    gradient into q and p = mask_prob; its label is 1 at every selected position, whatever was
    sampled there (Clark et al. 2020, Pre-Training Transformers as Energy-Based Cloze Models).
    """
    said = _cloze(model, batch)
    labels_BL = selected_positions(batch)
    share = model.objective.mask_prob
    energies_BL = _discriminator_logits(model, batch, said.corrupted_BL)
    logits_BL = energies_BL + said.log_q_BL + math.log(share / (1.0 - share))
    judged = _judged(batch, logits_BL, labels_BL)
    return _joint_losses(
        model, batch, judged, labels_BL, said.sampled_ids_BN, said.loss, said.logits_BNV
    )


def _candidates(model: JointElectra, batch: Batch) -> Tensor:
    """What may be selected, bool [B, L]: real tokens but [CLS], [SEP] and [MASK]."""
    special = model.special_ids
    assert special, "JointElectra needs the corpus's special ids for this objective"
    candidates_BL = torch.ones_like(batch.input_ids_BL, dtype=torch.bool)
    for role in ("cls", "sep", "mask"):
        candidates_BL &= batch.input_ids_BL != special[role]
    return (
        candidates_BL
        if batch.attention_mask_BL is None
        else (candidates_BL & batch.attention_mask_BL)
    )


def uniform_generator(model: JointElectra, batch: Batch) -> Losses:
    """Replaced-token detection without a generator: any id but the special ones, alike probable."""
    sampled_ids_BN = batch.sampled_ids_BN
    if sampled_ids_BN is None:
        assert model.special_ids, "JointElectra needs the corpus's special ids for this objective"
        sampled_ids_BN = sample_uniformly(
            batch.uniforms_BN, model.vocab_size, model.special_ids.values()
        )
    corrupted_BL = replace_tokens(batch, sampled_ids_BN)
    labels_BL = corrupted_BL != batch.input_ids_BL
    judged = _judged(batch, _discriminator_logits(model, batch, corrupted_BL), labels_BL)
    zero = torch.zeros((), device=judged.loss.device)
    return _joint_losses(model, batch, judged, labels_BL, sampled_ids_BN, zero, None)


class Objective(NamedTuple):
    """A loss over the joint module, and which towers it needs."""

    loss: Callable[[JointElectra, Batch], Losses]
    has_discriminator: bool
    generator: Literal["masked", "two_towers"] | None = "masked"
    """A masked language model, a cloze model of two causal towers, or none."""


OBJECTIVES: dict[str, Objective] = {
    "electra": Objective(electra, has_discriminator=True),
    "mlm": Objective(mlm, has_discriminator=False),
    "electric": Objective(electric, has_discriminator=True, generator="two_towers"),
    "uniform_generator": Objective(uniform_generator, has_discriminator=True, generator=None),
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
