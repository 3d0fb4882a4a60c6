"""Rows of several documents: each document is computed as if it stood in a row of its own."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from electra_dist.config.schema import RunConfig
from electra_dist.data.masking import MaskRule, mask_rows
from electra_dist.model import random
from electra_dist.model.batch import Batch, Losses
from electra_dist.model.electra import JointElectra
from electra_dist.model.encoder import attention_mask

LENGTH = 24
CLS, SEP, MASK = 2, 3, 4
BLOCKS = [[5, 3, 8], [22], [1, 1, 1, 1, 1, 1], [9, 4]]
Scrambled = Callable[..., JointElectra]


def packed_batch(seed: int = 0) -> Batch:
    """Rows of `BLOCKS`: full, one document, many short ones, and padded."""
    rng = np.random.default_rng(seed)
    ids, blocks, positions = (np.zeros((len(BLOCKS), LENGTH), np.int64) for _ in range(3))
    for number, (row, place) in enumerate(places()):
        size = place.stop - place.start
        ids[row, place] = [CLS, *rng.integers(5, 90, size - 2), SEP]
        blocks[row, place] = number + 1  # rising within a row, which is all that matters
        positions[row, place] = np.arange(size)
    num_tokens_B = (blocks > 0).sum(axis=1)
    rule = MaskRule(seed=seed, mask_prob=0.3, max_masked=7, mask_id=MASK, never=(CLS, SEP, MASK))
    masks = mask_rows(ids, num_tokens_B, np.arange(len(BLOCKS)), rule)
    return Batch(
        input_ids_BL=torch.from_numpy(ids),
        masked_ids_BL=torch.from_numpy(masks.masked_ids_BL).long(),
        token_type_ids_BL=torch.zeros(ids.shape, dtype=torch.int64),
        attention_mask_BL=torch.from_numpy(blocks > 0),
        masked_positions_BN=torch.from_numpy(masks.positions_BN).long(),
        masked_weights_BN=torch.from_numpy(masks.weights_BN),
        uniforms_BN=random.sampling_uniforms(masks.positions_BN.shape, seed, 0, 0),
        block_ids_BL=torch.from_numpy(blocks.astype(np.int16)),
        position_ids_BL=torch.from_numpy(positions.astype(np.int32)),
    )


def alone(batch: Batch, row: int, place: slice, slots: Tensor) -> Batch:
    """One document of a packed row as a row, with the slots that lie in it and their samples."""
    return Batch(
        input_ids_BL=batch.input_ids_BL[row : row + 1, place],
        masked_ids_BL=batch.masked_ids_BL[row : row + 1, place],
        token_type_ids_BL=batch.token_type_ids_BL[row : row + 1, place],
        attention_mask_BL=None,
        masked_positions_BN=batch.masked_positions_BN[row : row + 1, slots] - place.start,
        masked_weights_BN=batch.masked_weights_BN[row : row + 1, slots],
        uniforms_BN=batch.uniforms_BN[row : row + 1, slots],
    )


def places() -> list[tuple[int, slice]]:
    """Row and columns of every block."""
    found = []
    for row, blocks in enumerate(BLOCKS):
        start = 0
        for block in blocks:
            found.append((row, slice(start, start + block + 2)))
            start += block + 2
    return found


def test_a_document_in_a_packed_row_gives_what_it_gives_alone(
    config: RunConfig, scrambled: Scrambled
) -> None:
    model, batch = scrambled(config).double(), packed_batch()
    together: Losses = model(batch)
    assert together.discriminator_logits_BL is not None
    assert together.labels_BL is not None
    num_slots = 0
    for row, place in places():
        positions = batch.masked_positions_BN[row]
        within = (positions >= place.start) & (positions < place.stop)
        slots = torch.nonzero(within & (batch.masked_weights_BN[row] > 0)).squeeze(1)
        num_slots += len(slots)
        single: Losses = model(alone(batch, row, place, slots))
        found = together.generator_logits_BNV[row, slots]
        torch.testing.assert_close(found, single.generator_logits_BNV[0], rtol=0, atol=1e-5)
        # The same samples, so the discriminators read the same tokens.
        assert torch.equal(together.sampled_ids_BN[row, slots], single.sampled_ids_BN[0])
        assert single.labels_BL is not None
        assert single.discriminator_logits_BL is not None
        assert torch.equal(together.labels_BL[row, place], single.labels_BL[0])
        logits = together.discriminator_logits_BL[row, place]
        torch.testing.assert_close(logits, single.discriminator_logits_BL[0], rtol=0, atol=1e-5)
    assert num_slots == int(batch.masked_weights_BN.sum()) > 20
    assert together.labels_BL.sum() > 10


def test_losses_of_packed_rows_are_those_of_a_padded_row_a_document(
    make_config: Callable[..., RunConfig], scrambled: Scrambled
) -> None:
    config = make_config(hidden_dropout=0.0, attention_dropout=0.0)
    model, packed = scrambled(config).train(), packed_batch()
    fields: dict[str, list[Tensor]] = {}
    for row, place in places():
        size = place.stop - place.start
        for name in ("input_ids_BL", "masked_ids_BL", "token_type_ids_BL"):
            ids = torch.zeros(LENGTH, dtype=torch.int64)
            ids[:size] = getattr(packed, name)[row, place]
            fields.setdefault(name, []).append(ids)
        fields.setdefault("attention_mask_BL", []).append(torch.arange(LENGTH) < size)
        positions = packed.masked_positions_BN[row]
        within = (positions >= place.start) & (positions < place.stop)
        weights = packed.masked_weights_BN[row] * within
        fields.setdefault("masked_weights_BN", []).append(weights)
        moved = torch.where(weights > 0, positions - place.start, 0)
        fields.setdefault("masked_positions_BN", []).append(moved)
        fields.setdefault("uniforms_BN", []).append(packed.uniforms_BN[row])
    padded = Batch(**{name: torch.stack(values) for name, values in fields.items()})
    real = padded.attention_mask_BL
    assert real is not None
    wanted: Losses = model(padded)
    for batch in (packed, padded._replace(places_T=real.flatten().nonzero().squeeze(1))):
        found: Losses = model(batch)
        for name in ("total", "generator", "discriminator", "replaced_share"):
            value = getattr(wanted, name).item()
            assert getattr(found, name).item() == pytest.approx(value, rel=1e-5), name


def logits(model: JointElectra, batch: Batch, ids: Tensor) -> Tensor:
    """What both towers say of `ids`: [B, L, V + 1], the generator at all positions."""
    assert model.discriminator is not None
    types, mask = batch.token_type_ids_BL, batch.attention_mask_BL
    blocks = (batch.block_ids_BL, batch.position_ids_BL)
    everywhere = torch.arange(LENGTH).expand(len(ids), -1)
    generator = model.generator(ids, types, mask, everywhere, *blocks)
    discriminator = model.discriminator(ids, types, mask, *blocks)
    return torch.cat([generator, discriminator.unsqueeze(-1)], dim=-1)


@torch.no_grad()
def test_a_token_changes_no_logit_of_another_document(
    config: RunConfig, scrambled: Scrambled
) -> None:
    model, batch = scrambled(config), packed_batch()
    before = logits(model, batch, batch.input_ids_BL)
    for row, place in places():
        ids = batch.input_ids_BL.clone()
        ids[row, place.start + 1] = (ids[row, place.start + 1] + 1) % 90
        same = (logits(model, batch, ids) == before).all(dim=-1)
        assert not same[row, place].any()  # every token of the document sees it
        same[row, place] = True
        assert same.all()


@torch.no_grad()
def test_padding_changes_nothing_and_no_logit_is_nan(
    config: RunConfig, scrambled: Scrambled
) -> None:
    model, batch = scrambled(config), packed_batch()
    real = batch.attention_mask_BL
    assert real is not None
    before = logits(model, batch, batch.input_ids_BL)
    after = logits(model, batch, torch.where(real, batch.input_ids_BL, 50))
    assert torch.equal(before[real], after[real])
    assert torch.isfinite(before).all()
    losses = model(batch)
    assert torch.isfinite(losses.total)
    assert losses.discriminator.item() == pytest.approx(
        torch.nn.functional.binary_cross_entropy_with_logits(
            losses.discriminator_logits_BL[real], losses.labels_BL[real].float()
        ).item(),
        rel=1e-5,
    )


def test_the_mask_is_block_diagonal_and_leaves_no_query_without_a_key() -> None:
    blocks = torch.tensor([[1, 1, 2, 0]], dtype=torch.int16)
    mask = attention_mask(blocks > 0, blocks)
    assert mask is not None
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert attention_mask(None, None) is None


def test_a_batch_keeps_its_blocks_on_the_way_to_a_device() -> None:
    batch = packed_batch()
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, tuple)  # ZeRO-3 hangs its hooks on tensors in tuples
    for name in ("block_ids_BL", "position_ids_BL"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))
