"""Electric against formulas that go position by position, in float64 where they add up."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_dist.config.schema import ObjectiveConfig, RunConfig
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.model.sampling import replace_tokens
from electra_dist.model.two_towers import TwoTowerGenerator
from tests.variants import SPECIAL_IDS

MakeBatch = Callable[..., Batch]
Scrambled = Callable[..., JointElectra]


@pytest.fixture
def electric(config: RunConfig) -> RunConfig:
    return replace(config, objective=ObjectiveConfig(name="electric", mask_prob=0.2))


def towers_of(model: JointElectra) -> TwoTowerGenerator:
    assert isinstance(model.generator, TwoTowerGenerator)
    return model.generator


def logits_of(model: JointElectra, batch: Batch, ids_BL: Tensor) -> Tensor:
    return towers_of(model)(
        ids_BL,
        batch.token_type_ids_BL,
        batch.attention_mask_BL,
        batch.block_ids_BL,
        batch.position_ids_BL,
        batch.places_T,
    )


@pytest.mark.parametrize("side", ["left_to_right", "right_to_left"])
@torch.no_grad()
def test_a_token_reaches_only_what_lies_ahead_of_it(
    side: str, electric: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model, batch = scrambled(electric), make_batch(electric, [24])
    tower = getattr(towers_of(model), side)
    embedded = model.embeddings(batch.input_ids_BL, batch.token_type_ids_BL)
    before = tower(embedded, None)
    for place in range(24):
        changed = embedded.clone()
        changed[:, place] += 1.0
        same = (tower(changed, None) == before).all(dim=-1)[0]
        places = torch.arange(24)
        unread = places < place if side == "left_to_right" else places > place
        assert torch.equal(same, unread)


@pytest.mark.parametrize("num_tokens", [24, 17])
@torch.no_grad()
def test_a_position_sees_every_token_but_its_own(
    num_tokens: int, electric: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model, batch = scrambled(electric), make_batch(electric, [num_tokens])
    before = logits_of(model, batch, batch.input_ids_BL)
    assert before.shape == (1, 24, 90)
    for place in range(num_tokens):
        ids = batch.input_ids_BL.clone()
        ids[:, place] = (ids[:, place] + 1) % 90
        same = (logits_of(model, batch, ids) == before).all(dim=-1)[0, :num_tokens]
        assert same.nonzero().tolist() == [[place]]
    # Nor is padding read by any real token.
    ids = batch.input_ids_BL.clone()
    ids[:, num_tokens:] = 60
    after = logits_of(model, batch, ids)
    assert torch.equal(after[:, :num_tokens], before[:, :num_tokens])
    assert after.isfinite().all()


@torch.no_grad()
def test_logits_are_those_of_both_neighbours_and_zeros_at_the_ends(
    electric: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model, batch = scrambled(electric), make_batch(electric, [24, 15])
    generator = towers_of(model)
    found = logits_of(model, batch, batch.input_ids_BL)
    for row, end in enumerate((24, 15)):
        # The row by itself, without padding, position by position.
        ids = batch.input_ids_BL[row : row + 1, :end]
        embedded = model.embeddings(ids, batch.token_type_ids_BL[row : row + 1, :end])
        left = generator.left_to_right(embedded, None)[0]
        right = generator.right_to_left(embedded, None)[0]
        zero = torch.zeros_like(left[0])
        for place in range(end):
            before = left[place - 1] if place else zero
            behind = right[place + 1] if place + 1 < end else zero
            wanted = generator.head(torch.cat([before, behind]), model.embeddings.word.weight[:90])
            torch.testing.assert_close(found[row, place], wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_losses_and_logits_are_those_of_a_loop_over_positions(
    electric: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model, num_tokens = scrambled(electric), [24, 15, 9]
    batch = make_batch(electric, num_tokens)
    # In a row's first slot the sample is the original: noise all the same.
    samples_BN = model(batch).sampled_ids_BN
    originals_BN = batch.input_ids_BL.gather(1, batch.masked_positions_BN)
    samples_BN[:, 0] = originals_BN[:, 0]
    losses = model(batch._replace(sampled_ids_BN=samples_BN))
    log_q = logits_of(model, batch, batch.input_ids_BL).double().log_softmax(-1)
    corrupted = replace_tokens(batch, losses.sampled_ids_BN)
    energies = model.discriminator(corrupted, batch.token_type_ids_BL, batch.attention_mask_BL)
    never = {SPECIAL_IDS[role] for role in ("cls", "sep", "mask")}
    prior = math.log(0.2 / 0.8)
    cloze, noise = [], []
    for row, end in enumerate(num_tokens):
        selected = batch.masked_positions_BN[row][batch.masked_weights_BN[row] > 0].tolist()
        for place in range(end):
            original, token = int(batch.input_ids_BL[row, place]), int(corrupted[row, place])
            if original not in never:
                cloze.append(-float(log_q[row, place, original]))
            logit = float(energies[row, place]) + float(log_q[row, place, token]) + prior
            assert float(losses.discriminator_logits_BL[row, place]) == pytest.approx(
                logit, rel=1e-4, abs=1e-4
            )
            is_noise = place in selected
            assert bool(losses.labels_BL[row, place]) == is_noise
            noise.append(math.log1p(math.exp(-logit if is_noise else logit)))
            assert token == original or is_noise
    assert losses.generator.item() == pytest.approx(sum(cloze) / len(cloze), rel=1e-5)
    assert losses.discriminator.item() == pytest.approx(sum(noise) / len(noise), rel=1e-4)
    expected = losses.generator + 50.0 * losses.discriminator
    assert losses.total.item() == pytest.approx(expected.item())


@torch.no_grad()
def test_noise_is_drawn_from_the_cloze_models_own_softmax(
    electric: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model, batch = scrambled(electric), make_batch(electric, [24] * 4)
    losses = model(batch)
    probs = logits_of(model, batch, batch.input_ids_BL).double().softmax(-1)
    wrong = 0
    for row in range(4):
        for slot, place in enumerate(batch.masked_positions_BN[row].tolist()):
            found = losses.generator_logits_BNV[row, slot].double().softmax(-1)
            torch.testing.assert_close(found, probs[row, place], rtol=1e-4, atol=1e-6)
            exact = torch.searchsorted(
                probs[row, place].cumsum(-1), batch.uniforms_BN[row, slot].double(), right=True
            )
            wrong += int(losses.sampled_ids_BN[row, slot] != exact)
    assert wrong <= 1  # rounding may move one across a boundary


def test_noise_detection_sends_no_gradient_into_the_generator(
    electric: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    config = replace(electric, objective=replace(electric.objective, gen_weight=0.0))
    model, batch = scrambled(config).train(), make_batch(electric, [24, 15])
    model(batch).total.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("generator."):
            assert not parameter.grad.any(), name
        if name.startswith("discriminator.") and name.endswith("weight"):
            assert parameter.grad.any(), name


def test_the_cloze_loss_reaches_both_towers_through_dropout_of_their_own(
    electric: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    config = replace(electric, objective=replace(electric.objective, disc_weight=0.0))
    model, batch = scrambled(config), make_batch(electric, [24, 15])
    still = model(batch).generator
    model.train()
    loss = model(batch)
    assert loss.generator != still
    loss.total.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("generator."):
            assert parameter.grad.any(), name


@torch.no_grad()
def test_documents_of_a_row_are_computed_as_if_they_stood_alone(
    electric: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model = scrambled(electric)
    two = make_batch(electric, [14, 10])
    row = torch.cat([two.input_ids_BL[0, :14], two.input_ids_BL[1, :10]])[None]
    packed = Batch(
        input_ids_BL=row,
        masked_ids_BL=row,
        token_type_ids_BL=torch.zeros_like(row),
        attention_mask_BL=None,
        masked_positions_BN=torch.tensor([[3, 16]]),
        masked_weights_BN=torch.ones(1, 2),
        uniforms_BN=torch.tensor([[0.3, 0.6]]),
        block_ids_BL=torch.tensor([[1] * 14 + [2] * 10], dtype=torch.int16),
        position_ids_BL=torch.cat([torch.arange(14), torch.arange(10)])[None].int(),
    )
    found = logits_of(model, packed, row)[0]
    for part in (slice(0, 14), slice(14, 24)):
        ids = row[:, part]
        wanted = towers_of(model)(ids, torch.zeros_like(ids), None)
        torch.testing.assert_close(found[part], wanted[0], rtol=1e-4, atol=1e-4)
    alone = F.one_hot(torch.tensor([3, 16]), 24).sum(0).bool()[None]
    assert torch.equal(model(packed).labels_BL, alone)
