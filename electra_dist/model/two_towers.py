"""Electric's generator: a left-to-right and a right-to-left tower that leave the token itself out.

Shapes: B rows, L positions, D width of a tower, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_dist.model import random
from electra_dist.model.encoder import Embeddings, Encoder


class TwoTowerGenerator(nn.Module):
    """q(x_t | all tokens but x_t) at every position, in one pass over the unmasked row.

    The vector of a position is that of its left neighbour in the first tower beside that of its
    right neighbour in the second; where there is no neighbour, at the ends of a row or of a
    document in it, it is 0 (google-research/electra takes the row's other end there).

    Args:
        embeddings: read by both towers.
        left_to_right: the first tower.
        right_to_left: the second, of the same size.
        head: from 2 D to logits over the vocabulary, given the word table.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        left_to_right: Encoder,
        right_to_left: Encoder,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        left_to_right.direction = "left_to_right"
        right_to_left.direction = "right_to_left"
        self.left_to_right = left_to_right
        self.right_to_left = right_to_left
        self.head = head

    def forward(
        self,
        ids_BL: Tensor,
        token_type_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        block_ids_BL: Tensor | None = None,
        position_ids_BL: Tensor | None = None,
        places_T: Tensor | None = None,
        *,
        with_padding: bool = False,
    ) -> Tensor:
        """Logits [B, L, V]; arguments as in `Batch` and of `electra.Generator`."""
        key, left_keys, right_keys = None, None, None
        if self.training:
            num_sites = self.left_to_right.num_sites
            keys = random.site_keys(1 + 2 * num_sites, ids_BL.device)
            key, left_keys, right_keys = keys[0], keys[1 : 1 + num_sites], keys[1 + num_sites :]
        embedded_BLE = self.embeddings(ids_BL, token_type_ids_BL, position_ids_BL, key)
        # Padding as a block of its own: the tower from the right would read it first of all.
        blocks_BL = attention_mask_BL if block_ids_BL is None else block_ids_BL
        left_BLD = self.left_to_right(embedded_BLE, None, blocks_BL, places_T, left_keys)
        right_BLD = self.right_to_left(embedded_BLE, None, blocks_BL, places_T, right_keys)
        left_BLD, right_BLD = neighbours(left_BLD, right_BLD, blocks_BL)
        word = self.embeddings.word
        logits_BLR: Tensor = self.head(torch.cat([left_BLD, right_BLD], dim=-1), word.weight)
        return logits_BLR if with_padding else logits_BLR[..., : word.num_ids]


def neighbours(
    left_BLD: Tensor, right_BLD: Tensor, blocks_BL: Tensor | None
) -> tuple[Tensor, Tensor]:
    """For each position the first tower's vector on its left and the second's on its right.

    0 at the ends of a row, and where the neighbour belongs to another block.
    """
    left_BKD, right_BKD = left_BLD[:, :-1], right_BLD[:, 1:]
    if blocks_BL is not None:
        same_BK1 = (blocks_BL[:, :-1] == blocks_BL[:, 1:]).unsqueeze(-1)
        left_BKD, right_BKD = left_BKD * same_BK1, right_BKD * same_BK1
    return F.pad(left_BKD, (0, 0, 1, 0)), F.pad(right_BKD, (0, 0, 0, 1))
