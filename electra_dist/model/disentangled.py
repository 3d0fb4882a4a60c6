"""Gradient-disentangled embedding sharing (He et al. 2021, DeBERTaV3, section 3.3).

The two losses pull the tables apart: replaced-token detection wants alike tokens far from each
other, a masked language model near. So the discriminator reads stop_gradient(shared) + difference,
and its loss reaches the difference alone. Shapes: B rows, L positions, E embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_dist.model import ops
from electra_dist.model.encoder import Embeddings


class DisentangledEmbeddings(nn.Module):
    """The discriminator's embeddings: the generator's, without gradient, plus a difference.

    Of all that the towers else share: three tables and the LayerNorm.

    Args:
        shared: the generator's embeddings.
        difference: of the same shapes; starts at 0 (`electra.initialize`).
    """

    def __init__(self, shared: Embeddings, difference: Embeddings) -> None:
        super().__init__()
        self.shared = shared
        self.difference = difference

    def forward(
        self,
        input_ids_BL: Tensor,
        token_type_ids_BL: Tensor,
        position_ids_BL: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Tensor:
        """As `Embeddings.forward`, to the bit as that of the merged tables would be.

        Rows are added after the look-up, not V of them before it.
        """
        if position_ids_BL is None:
            position_ids_BL = torch.arange(input_ids_BL.shape[1], device=input_ids_BL.device)
        embedded_BLE = (
            self._rows("word", input_ids_BL)
            + self._rows("token_type", token_type_ids_BL)
            + self._rows("position", position_ids_BL)
        )
        ours, theirs = self.difference.layer_norm, self.shared.layer_norm
        normed_BLE = F.layer_norm(
            embedded_BLE,
            ours.normalized_shape,
            theirs.weight.detach() + ours.weight,
            theirs.bias.detach() + ours.bias,
            ours.eps,
        )
        return ops.dropout(normed_BLE, self.shared.dropout, key)

    def _rows(self, table: str, ids: Tensor) -> Tensor:
        with torch.no_grad():
            shared: Tensor = getattr(self.shared, table)(ids)
        rows: Tensor = shared + getattr(self.difference, table)(ids)
        return rows

    def merged(self) -> dict[str, Tensor]:
        """One set of embeddings that gives the same vectors, by the names of `Embeddings`."""
        difference = dict(self.difference.named_parameters())
        return {
            name: parameter.detach() + difference[name].detach()
            for name, parameter in self.shared.named_parameters()
        }

    def external_parameters(self) -> list[tuple[nn.Module, Tensor]]:
        """See `JointElectra.external_parameters`."""
        norms = (self.shared.layer_norm, self.difference.layer_norm)
        return [(self, parameter) for norm in norms for parameter in norm.parameters()]
