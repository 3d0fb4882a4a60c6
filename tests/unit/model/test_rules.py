"""What ports of ELECTRA get wrong, a test each (algorithm: section 8, whose numbers these are)."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import RunConfig
from electra_dist.data.examples import pack_document, split_segments
from electra_dist.data.masking import MaskRule, mask_rows, num_selected
from electra_dist.data.store import Array
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.optim import ElectraAdam, decay_groups
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.engine.schedule import learning_rate_factor
from electra_dist.finetune.heads import HEADS
from electra_dist.model import random
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.model.objectives import masked_logits, sample_tokens
from electra_dist.model.padding import stored_shapes
from electra_dist.runtime.control import Control
from electra_dist.runtime.world import World
from electra_dist.train.build import Run
from electra_dist.train.evaluate import evaluate
from electra_dist.train.state import RunState

WORLD = World.from_environment({})
CPU = torch.device("cpu")
PAD, UNK, CLS, SEP, MASK = range(5)
RULE = MaskRule(seed=3, mask_prob=0.15, max_masked=19, mask_id=MASK, never=(CLS, SEP, MASK))
LAST_LAYER = "discriminator.head.out.weight"

MakeBatch = Callable[..., Batch]
Scrambled = Callable[..., JointElectra]


def made_up_rows(num_rows: int, length: int) -> Array:
    """Full rows [CLS] ... [SEP] that hold [UNK] and even a [MASK] now and then."""
    ids = np.random.default_rng(0).integers(0, 400, (num_rows, length))
    ids[ids == PAD] = UNK
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids


def bce(logit: float, label: bool) -> float:
    return math.log1p(math.exp(-abs(logit))) + max(0.0, -logit if label else logit)


def test_rule_01_adam_has_no_bias_correction() -> None:
    weight = torch.tensor([0.5, -2.0])
    parameter = torch.nn.Parameter(weight.clone())
    parameter.grad = torch.tensor([0.3, -0.001])
    ElectraAdam([parameter], lr=0.01, weight_decay=0.0).step()
    for new, old, grad in zip(parameter.tolist(), weight.tolist(), [0.3, -0.001], strict=True):
        # With bias correction the first step is the whole rate, 0.01; without it 3.16 times that.
        update = 0.1 * grad / (math.sqrt(0.001 * grad**2) + 1e-6)
        assert abs(update) > 3.0
        assert new == pytest.approx(old - 0.01 * update, rel=1e-6)


def test_rule_02_warmup_multiplies_the_decay_and_the_first_rate_is_zero() -> None:
    assert learning_rate_factor(0, 1000, 100) == 0.0
    assert learning_rate_factor(50, 1000, 100) == pytest.approx(0.5 * 0.95)
    # Ports that start the decay behind the warm-up have 1.0 here.
    assert learning_rate_factor(100, 1000, 100) == pytest.approx(0.9)
    assert learning_rate_factor(550, 1000, 100) == pytest.approx(0.45)
    assert learning_rate_factor(1000, 1000, 100) == 0.0


def test_rule_03_selected_tokens_become_mask_or_stay_and_never_random() -> None:
    ids = made_up_rows(1500, 128)
    masks = mask_rows(ids, np.full(1500, 128), np.arange(1500), RULE)
    num_masked = num_kept = 0
    for row, masked, positions in zip(ids, masks.masked_ids_BL, masks.positions_BN, strict=True):
        changed = set(np.flatnonzero(row != masked))
        assert changed <= set(positions)
        assert set(masked[list(changed)]) == {MASK}
        num_masked += len(changed)
        num_kept += len(positions) - len(changed)
    # 28 500 draws: a deviation is 0.0021.
    assert num_masked / (num_masked + num_kept) == pytest.approx(0.85, abs=0.007)


def test_rule_04_a_fixed_count_rounded_half_to_even_with_specials_counted() -> None:
    for n in range(3, 513):
        # google-research/electra multiplies in float32, where 0.15 x 190 is a little above 28.5.
        rounded = int(torch.round(torch.tensor(0.15) * torch.tensor(float(n))))
        if n <= 128:
            assert rounded == round(Fraction(15, 100) * n)  # Python rounds a half to even
        for slots in (19, 79):
            expected = max(1, min(slots, rounded))
            assert num_selected(np.array([n]), 0.15, slots).tolist() == [expected], n
    assert num_selected(np.array([10, 30, 50, 70]), 0.15, 19).tolist() == [2, 4, 8, 10]
    # 10 tokens are 8 candidates and 2 specials: 15 % of 8 would be 1. A Bernoulli draw would vary.
    num_tokens = np.full(50, 10)
    masks = mask_rows(made_up_rows(50, 10).clip(5), num_tokens, np.arange(50), RULE)
    assert masks.weights_BN.sum(axis=1).tolist() == [2.0] * 50
    for config in (RECIPES["small"](), RECIPES["base"](), RECIPES["large"]()):
        assert config.max_masked == {"small": 19, "base": 79, "large": 130}[config.recipe]


def test_rule_05_every_selected_position_takes_a_sample_the_kept_ones_too(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model = scrambled(config)
    batch = make_batch(config, [24] * 64)
    losses = model(batch)
    num_kept_replaced = 0
    corrupted = batch.input_ids_BL.clone()
    for i, positions in enumerate(batch.masked_positions_BN.tolist()):
        used = [p for p, w in zip(positions, batch.masked_weights_BN[i], strict=True) if w > 0]
        for slot, position in enumerate(used):
            sample = int(losses.sampled_ids_BN[i, slot])
            corrupted[i, position] = sample
            is_kept = bool(batch.masked_ids_BL[i, position] == batch.input_ids_BL[i, position])
            num_kept_replaced += is_kept and sample != int(batch.input_ids_BL[i, position])
    assert num_kept_replaced > 10  # 15 % of 256 slots, nearly all of them guessed wrong
    assert torch.equal(losses.labels_BL, corrupted != batch.input_ids_BL)
    seen = model.discriminator(corrupted, batch.token_type_ids_BL, None)
    torch.testing.assert_close(losses.discriminator_logits_BL, seen, rtol=0, atol=1e-5)


def test_rule_06_a_correct_sample_is_a_real_token(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    batch = make_batch(config, [24] * 4)
    originals = batch.input_ids_BL.gather(1, batch.masked_positions_BN)
    given = originals.clone()
    given[:, 0] = 5 + (originals[:, 0] - 4) % 80  # the first slot of each row is replaced for sure
    assert (given[:, 0] != originals[:, 0]).all()
    losses = scrambled(config)(batch._replace(sampled_ids_BN=given))
    wanted = torch.zeros_like(batch.input_ids_BL, dtype=torch.bool)
    for row, position in enumerate(batch.masked_positions_BN[:, 0].tolist()):
        wanted[row, position] = True
    assert torch.equal(losses.labels_BL, wanted)
    used = batch.masked_weights_BN.sum()
    assert losses.replaced_share.item() == pytest.approx(4 / float(used))


def test_rule_07_the_discriminator_is_judged_at_cls_and_sep_and_not_at_padding(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    num_tokens = [24, 11, 17]
    losses = scrambled(config)(make_batch(config, num_tokens))
    logits, labels = losses.discriminator_logits_BL.tolist(), losses.labels_BL.tolist()
    terms = [
        bce(logits[row][column], labels[row][column])
        for row, end in enumerate(num_tokens)
        for column in range(end)  # 0 is [CLS], end - 1 is [SEP]
    ]
    assert losses.discriminator.item() == pytest.approx(sum(terms) / sum(num_tokens), rel=1e-5)
    expected = losses.generator + 50.0 * losses.discriminator
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_rule_08_tables_and_their_layer_norm_are_one_for_both_towers(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model = scrambled(config)
    batch = make_batch(config, [24, 24])
    shared = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith("embeddings.")
    }
    assert sorted(shared) == [
        "embeddings.layer_norm.bias",
        "embeddings.layer_norm.weight",
        "embeddings.position.weight",
        "embeddings.token_type.weight",
        "embeddings.word.weight",
    ]
    hidden = model.embeddings(batch.input_ids_BL, batch.token_type_ids_BL).shape
    assert hidden[-1] == config.model.embedding_size
    for tower in (
        model.generator(batch.masked_ids_BL, batch.token_type_ids_BL, None, torch.ones(2, 1).long())
        .square()
        .sum(),
        model.discriminator(batch.input_ids_BL, batch.token_type_ids_BL, None).square().sum(),
    ):
        gradients = torch.autograd.grad(tower, list(shared.values()))
        for name, gradient in zip(shared, gradients, strict=True):
            assert gradient.abs().max() > 0, name
    # Not tied: everything else.
    towers = [dict(t.encoder.named_parameters()) for t in (model.generator, model.discriminator)]
    assert "embeddings_project.weight" in towers[0]
    assert not {id(p) for p in towers[0].values()} & {id(p) for p in towers[1].values()}


def test_rule_09_the_generator_predicts_through_the_word_table_at_its_width(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model = scrambled(config)
    batch = make_batch(config, [24, 24])
    head = model.generator.head
    embedded = model.embeddings(batch.masked_ids_BL, batch.token_type_ids_BL)
    hidden = model.generator.encoder(embedded, None).double()[:, 3]
    weights = {name: p.double() for name, p in head.named_parameters()}
    inner = F.gelu(hidden @ weights["dense.weight"].T + weights["dense.bias"])
    centred = inner - inner.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    projected = normed * weights["layer_norm.weight"] + weights["layer_norm.bias"]
    assert projected.shape[-1] == config.model.embedding_size
    logits = projected @ model.embeddings.word.weight[:90].double().T + weights["bias"]
    positions = torch.full((2, 1), 3)
    found = model.generator(batch.masked_ids_BL, batch.token_type_ids_BL, None, positions)
    torch.testing.assert_close(found[:, 0].double(), logits, rtol=1e-4, atol=1e-4)


def test_rule_10_glorot_for_the_projection_and_the_last_layer_only() -> None:
    config = RECIPES["tiny"]()
    model = JointElectra(replace(config, model=replace(config.model, vocab_size=1000)))
    num_glorot = 0
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "layer_norm" in name:
            assert (parameter == 1).all(), name
        else:
            fan_out, fan_in = parameter.shape
            largest, deviation = parameter.abs().max().item(), parameter.std().item()
            if "embeddings_project" in name or name == LAST_LAYER:
                bound = math.sqrt(6 / (fan_in + fan_out))
                assert 0.9 * bound < largest <= bound, name
                assert deviation == pytest.approx(bound / math.sqrt(3), rel=0.2), name
                num_glorot += 1
            else:
                # A normal of 0.02, cut at two deviations, has a deviation of 0.0176.
                assert largest <= 0.04, name
                assert deviation == pytest.approx(0.0176, rel=0.15), name
    # tiny's generator is as wide as its embeddings, so only the discriminator projects.
    assert num_glorot == 2


def micro_batch(batch: Batch, step: int = 0, index: int = 0) -> MicroBatch:
    length = batch.input_ids_BL.shape[1]
    real = batch.attention_mask_BL
    return MicroBatch(
        step=step,
        index=index,
        is_real=True,
        input_ids_BL=batch.input_ids_BL.numpy(),
        masked_ids_BL=batch.masked_ids_BL.numpy(),
        token_type_ids_BL=batch.token_type_ids_BL.numpy(),
        num_tokens_B=np.full(len(batch.input_ids_BL), length)
        if real is None
        else real.sum(dim=1).numpy(),
        masked_positions_BN=batch.masked_positions_BN.numpy(),
        masked_weights_BN=batch.masked_weights_BN.numpy(),
    )


def test_rule_11_one_clip_of_the_joint_gradient_at_one(
    calm: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    calm = replace(calm, batch=replace(calm.batch, global_batch_size=4, micro_batch_size=4))
    batch = make_batch(calm, [24, 24, 13, 24])
    model = scrambled(calm)
    model(batch).total.backward()
    shapes = stored_shapes(model)
    gradients = {
        name: p.grad[: shapes[name][0]].double().flatten() for name, p in model.named_parameters()
    }
    norm = torch.cat(list(gradients.values())).norm().item()
    towers = {
        tower: torch.cat([g for name, g in gradients.items() if name.startswith(tower)]).norm()
        for tower in ("generator", "discriminator", "embeddings")
    }
    # Were each tower clipped on its own, both would come out with norm 1.
    assert min(towers.values()) > 1.0
    model.zero_grad()

    engine = ReferenceEngine(model, calm, WORLD, CPU, lambda *_: batch)
    result = engine.step([micro_batch(batch)], learning_rate=1e-3)
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
    first = {f.parameter: f.values for f in engine.local_fragments() if f.kind == "exp_avg"}
    assert first.keys() == gradients.keys()
    for name, gradient in gradients.items():
        wanted = 0.1 * gradient / norm
        torch.testing.assert_close(first[name].double(), wanted, rtol=1e-3, atol=1e-7)


def test_rule_12_the_generator_is_narrower_but_keeps_every_layer() -> None:
    shapes = {"small": (12, 64, 256), "base": (12, 256, 768), "large": (24, 256, 1024)}
    for name, (num_layers, generator_width, width) in shapes.items():
        config = RECIPES[name]()
        with torch.device("meta"):
            model = JointElectra(replace(config, model=replace(config.model, vocab_size=30522)))
        for tower, tower_width in (
            (model.generator, generator_width),
            (model.discriminator, width),
        ):
            assert len(tower.encoder.layers) == num_layers
            assert tower.encoder.layers[0].ffn_in.weight.shape == (4 * tower_width, tower_width)


def test_rule_13_shares_of_single_segments_short_targets_and_overshooting_sentences() -> None:
    rng = np.random.default_rng(5)
    single = [split_segments(0, range(10, 131, 10), 128, 128, rng)[1] == 0 for _ in range(20000)]
    assert np.mean(single) == pytest.approx(0.1, abs=0.009)
    # A aims at 62 and holds 50: whether the 30 that overshoot may join is a fair coin.
    cuts = [split_segments(0, [50, 80, 140], 128, 128, rng) for _ in range(20000)]
    joined = [length_a == 80 for length_a, length_b in cuts if length_b]
    assert np.mean(joined) == pytest.approx(0.5, abs=0.015)
    # Sentences of one token: an example is as long as its target, uniform in [5, 128] if short.
    examples = pack_document(0, range(1, 1_000_001), 128, "google", rng)
    lengths = np.array([length_a + length_b for _, length_a, length_b in examples[:-1]])
    assert np.mean(lengths < 125) == pytest.approx(0.05 * 120 / 124, abs=0.01)
    assert lengths.min() >= 5
    assert lengths[lengths < 125].mean() == pytest.approx(64.5, abs=7)


def test_rule_14_embeddings_decay_and_biases_and_layer_norms_do_not(
    config: RunConfig, scrambled: Scrambled
) -> None:
    model = scrambled(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = ElectraAdam(decay_groups(model, 0.01), lr=0.5)
    optimizer.step()
    for name, parameter in model.named_parameters():
        # Matrices and tables decay; what has one dimension is a bias or belongs to a LayerNorm.
        factor = 1.0 - 0.5 * 0.01 if parameter.dim() == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    for table in (model.embeddings.word, model.embeddings.position, model.embeddings.token_type):
        assert id(table.weight) in decayed


@pytest.mark.parametrize("head", ["google", "hf"])
def test_rule_15_no_pooler_a_sequence_is_its_first_vector(
    head: str, config: RunConfig, scrambled: Scrambled
) -> None:
    assert not [name for name, _ in scrambled(config).named_parameters() if "pool" in name]
    shape = SimpleNamespace(
        hidden_size=8, hidden_dropout_prob=0.1, classifier_dropout=None, initializer_range=0.02
    )
    classifier = HEADS[head](cast(Any, shape), 2).eval()
    hidden = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(classifier(hidden)[0, 0], hidden)
    assert gradient[0, 0].abs().min() > 0
    assert not gradient[0, 1:].any()


def test_rule_16_the_generator_samples_with_its_dropout_on(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model = scrambled(config)
    batch = make_batch(config, [24] * 8)
    without = model(batch)
    model.train()
    samples = []
    for micro in range(2):
        random.seed_dropout(config.seed, 0, micro)
        losses = model(batch)
        # The samples come from the very pass that the loss is taken from.
        random.seed_dropout(config.seed, 0, micro)
        logits = masked_logits(model, batch)
        originals = batch.input_ids_BL.gather(1, batch.masked_positions_BN)
        used = batch.masked_weights_BN > 0
        loss = F.cross_entropy(logits[used], originals[used])
        torch.testing.assert_close(losses.generator, loss.detach())
        again = sample_tokens(logits, batch.uniforms_BN, 1.0, model.vocab_size)
        assert torch.equal(losses.sampled_ids_BN, again)
        samples.append(losses.sampled_ids_BN)
    assert not torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], without.sampled_ids_BN)

    # And a step of training runs in that mode, even behind an evaluation.
    config = replace(config, batch=replace(config.batch, global_batch_size=8, micro_batch_size=8))
    seen: list[Tensor] = []
    model.register_forward_hook(lambda _m, _i, losses: seen.append(losses.sampled_ids_BN))
    engine = ReferenceEngine(model, config, WORLD, CPU, lambda *_: batch)
    evaluated = engine.evaluate(batch)
    assert torch.equal(evaluated.sampled_ids_BN, without.sampled_ids_BN)
    engine.step([micro_batch(batch, step=0, index=1)], learning_rate=0.0)
    assert torch.equal(seen[-1], samples[1])


def test_rule_17_logits_at_the_masked_positions_are_the_full_logits_gathered(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model = scrambled(config)
    batch = make_batch(config, [24, 9, 18])
    inputs = (batch.masked_ids_BL, batch.token_type_ids_BL, batch.attention_mask_BL)
    full = model.generator(*inputs, torch.arange(24).expand(3, 24)).detach()
    few = model.generator(*inputs, batch.masked_positions_BN)
    for row in range(3):
        for slot, position in enumerate(batch.masked_positions_BN[row].tolist()):
            torch.testing.assert_close(few[row, slot], full[row, position], rtol=0, atol=1e-5)
    losses = model(batch)
    terms = [
        -F.log_softmax(full[row, position].double(), dim=-1)[batch.input_ids_BL[row, position]]
        for row in range(3)
        for slot, position in enumerate(batch.masked_positions_BN[row].tolist())
        if batch.masked_weights_BN[row, slot] > 0
    ]
    assert losses.generator.item() == pytest.approx(float(sum(terms)) / len(terms), rel=1e-5)


def panel(model: JointElectra, config: RunConfig, batch: Batch, num_tokens: list[int]) -> Any:
    """The held-out metrics of `batch` as train.evaluate gives them."""
    frozen = {
        "input_ids": batch.input_ids_BL.numpy(),
        "masked_ids": batch.masked_ids_BL.numpy(),
        "token_type_ids": batch.token_type_ids_BL.numpy(),
        "num_tokens": np.array(num_tokens),
        "masked_positions": batch.masked_positions_BN.numpy(),
        "masked_weights": batch.masked_weights_BN.numpy(),
        "uniforms": batch.uniforms_BN.numpy(),
        "unigram_ids": 5 + (batch.masked_positions_BN.numpy() * 7) % 80,
    }
    run = SimpleNamespace(
        config=config,
        frozen=frozen,
        world=WORLD,
        engine=ReferenceEngine(model, config, WORLD, CPU),
        control=Control(group=None, store=None, world=WORLD, timeout_seconds=10.0),
        unigram_log_probs=np.full(90, -math.log(90)),
        state=RunState(),
    )
    return evaluate(cast(Run, run))


def padded(batch: Batch, num_columns: int) -> Batch:
    """The same rows with `num_columns` more of padding, whose content is arbitrary."""
    shape = (len(batch.input_ids_BL), num_columns)
    noise = torch.randint(5, 90, shape, generator=torch.Generator().manual_seed(0))
    return batch._replace(
        input_ids_BL=torch.cat([batch.input_ids_BL, noise], dim=1),
        masked_ids_BL=torch.cat([batch.masked_ids_BL, noise], dim=1),
        token_type_ids_BL=torch.cat([batch.token_type_ids_BL, noise % 2], dim=1),
    )


def test_rule_18_metrics_count_real_tokens_only(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    # 11 rows in passes of 4: the last pass is smaller.
    config = replace(config, batch=replace(config.batch, global_batch_size=4, micro_batch_size=4))
    num_tokens = [24, 10, 15, 24, 7, 20, 12, 24, 9, 11, 23]
    model = scrambled(config)
    batch = make_batch(config, num_tokens)
    metrics = panel(model, config, batch, num_tokens)
    longer = panel(model, config, padded(batch, 16), num_tokens)
    assert longer.keys() == metrics.keys()
    assert longer == pytest.approx(metrics, rel=1e-4)

    # The oracle: each row alone, cut to its real tokens, and loops over them.
    logits: list[float] = []
    labels: list[bool] = []
    generator_terms: list[float] = []
    for row, end in enumerate(num_tokens):
        used = batch.masked_weights_BN[row] > 0
        alone = Batch(
            input_ids_BL=batch.input_ids_BL[row : row + 1, :end],
            masked_ids_BL=batch.masked_ids_BL[row : row + 1, :end],
            token_type_ids_BL=batch.token_type_ids_BL[row : row + 1, :end],
            attention_mask_BL=None,
            masked_positions_BN=batch.masked_positions_BN[row : row + 1, used],
            masked_weights_BN=batch.masked_weights_BN[row : row + 1, used],
            uniforms_BN=batch.uniforms_BN[row : row + 1, used],
        )
        losses = model(alone)
        logits += losses.discriminator_logits_BL[0].tolist()
        labels += losses.labels_BL[0].tolist()
        generator_terms += [losses.generator.item()] * int(used.sum())
    assert len(logits) == sum(num_tokens)
    replaced = [logit for logit, label in zip(logits, labels, strict=True) if label]
    real = [logit for logit, label in zip(logits, labels, strict=True) if not label]
    pairs = [(r > o) + 0.5 * (r == o) for r in replaced for o in real]
    called = [logit for logit in logits if logit > 0]
    hits = sum(logit > 0 for logit in replaced)
    terms = [bce(logit, label) for logit, label in zip(logits, labels, strict=True)]
    oracle = {
        "generator_loss": np.mean(generator_terms),
        "own_disc_loss": np.mean(terms),
        "own_disc_accuracy": (hits + sum(logit <= 0 for logit in real)) / len(logits),
        "own_disc_precision": hits / len(called),
        "own_disc_recall": hits / len(replaced),
        "own_disc_auc": np.mean(pairs),
    }
    assert {name: metrics[name] for name in oracle} == pytest.approx(oracle, rel=1e-4)
