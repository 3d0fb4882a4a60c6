"""What goes into the joint module and what comes out of it.

Named tuples, because ZeRO-3 looks for tensors in tuples to hang its hooks on and does not look into
dataclasses. Shapes: B rows, L positions, N masked slots of a row, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One micro-batch as tensors on one device."""

    input_ids_BL: Tensor
    """int64, the original row: [CLS] A [SEP] B [SEP], or several documents, and padding."""
    masked_ids_BL: Tensor
    """int64, the same row with the generator's [MASK] tokens in place."""
    token_type_ids_BL: Tensor
    """int64, 0 for the first segment and its specials, 1 for the second."""
    attention_mask_BL: Tensor | None
    """bool, True at real tokens; None where no row of the batch has padding."""
    masked_positions_BN: Tensor
    """int64, the selected positions; a slot that is not used holds 0."""
    masked_weights_BN: Tensor
    """float32, 1 at used slots and 0 else."""
    uniforms_BN: Tensor
    """float32 in [0, 1), the noise that a replacement is sampled with."""
    sampled_ids_BN: Tensor | None = None
    """int64 replacements from outside (frozen corruption, parity tests) in place of samples."""
    block_ids_BL: Tensor | None = None
    """int16, rows that documents share (packed ones, and short ones of a batch): 1, 2 ... for these
    and 0 for padding. A token attends to its own document only."""
    position_ids_BL: Tensor | None = None
    """int32, where there are blocks: positions, from 0 in every one."""
    places_T: Tensor | None = None
    """int64, where the real tokens stand among the B L places: the encoders compute only these.
    None: they compute padding too."""
    step: int = 0
    """Update number, counted from 0: an annealed temperature follows from it."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in self._asdict().items()
        }
        return Batch(**moved)


class Losses(NamedTuple):
    """What a forward pass returns; means are over this micro-batch, all but `total` detached."""

    total: Tensor
    """Scalar that is backpropagated: gen_weight x generator + disc_weight x discriminator."""
    generator: Tensor
    """Scalar, mean of -log p(original) in nats: over the masked slots; electric, over all
    candidates; 0 without a generator."""
    discriminator: Tensor
    """Scalar, mean binary cross-entropy over all real tokens; 0 for mlm."""
    replaced_share: Tensor
    """Scalar, share of the selected positions whose replacement is another id; 0 for mlm."""
    generator_logits_BNV: Tensor | None
    """At the masked slots, in evaluation; None in training, which has no use for so many numbers,
    and without a generator."""
    sampled_ids_BN: Tensor
    """int64, the replacements that were used; the originals for mlm."""
    discriminator_logits_BL: Tensor | None = None
    """float32 logits of "was replaced" (electric: "is noise")."""
    labels_BL: Tensor | None = None
    """bool, True where a token was replaced by another one (electric: was selected)."""
