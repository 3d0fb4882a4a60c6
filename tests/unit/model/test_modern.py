"""The `modern` backbone against transformers' ModernBertModel and against plain formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import ModernBertConfig, ModernBertModel

from electra_dist.config.schema import EngineConfig, RunConfig
from electra_dist.engine.optim import decay_groups
from electra_dist.model import modern, ops, random
from electra_dist.model.batch import Batch, Losses
from electra_dist.model.electra import JointElectra
from electra_dist.model.modern import local_mask
from electra_dist.model.stack import Layout
from tests.unit.model.test_packed import alone, packed_batch, places

MakeBatch = Callable[..., Batch]
Scrambled = Callable[..., JointElectra]
MakeConfig = Callable[..., RunConfig]

CALM = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
SPECIAL = dict.fromkeys([f"{role}_token_id" for role in ("pad", "bos", "eos", "cls", "sep")], 0)
NAMES = {
    "embeddings_layer_norm": "embeddings.norm",
    "final_layer_norm": "final_norm",
    "attention_layer_norm": "attn_norm",
    "qkv": "attn.Wqkv",
    "attention_output": "attn.Wo",
    "ffn_layer_norm": "mlp_norm",
    "ffn_in": "mlp.Wi",
    "ffn_out": "mlp.Wo",
}


@pytest.fixture(name="config")
def config_fixture(make_config: MakeConfig) -> RunConfig:
    """Five layers, of which the second, third and fifth are local; a token reads 3 on each side."""
    return make_config(
        backbone="modern", num_layers=5, generator_num_layers=5, local_attention_window=6
    )


def transformers_model(encoder: modern.Encoder, table_VE: Tensor) -> ModernBertModel:
    """The tower's weights in transformers' class: the table and its projection are one matrix."""
    config, width = encoder.config, encoder.final_layer_norm.weight.shape[0]
    project = encoder.embeddings_project
    weights = {
        "embeddings.tok_embeddings.weight": table_VE
        if project is None
        else table_VE @ project.weight.T
    }
    for name, parameter in encoder.named_parameters():
        if not name.startswith("embeddings_project"):
            *front, part, kind = name.split(".")
            weights[".".join([*front, NAMES[part], kind])] = parameter
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": config.rope_theta},
        "sliding_attention": {"rope_type": "default", "rope_theta": config.local_rope_theta},
    }
    theirs = ModernBertModel(
        ModernBertConfig(
            vocab_size=len(table_VE),
            hidden_size=width,
            intermediate_size=config.inner_width(width),
            num_hidden_layers=len(encoder.layers),
            num_attention_heads=width // encoder.head_width,
            norm_eps=config.layer_norm_eps,
            local_attention=config.local_attention_window,
            global_attn_every_n_layers=config.global_attention_every,
            rope_parameters=rope,
            max_position_embeddings=config.max_position_embeddings,
            **SPECIAL,
        )
    )
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == ([], [])
    return theirs.eval()


def vectors(model: JointElectra, tower: str, batch: Batch, places: Tensor | None = None) -> Tensor:
    encoder = getattr(model, tower).encoder
    embedded = model.embeddings(batch.input_ids_BL)
    found: Tensor = encoder(embedded, batch.attention_mask_BL, None, places)
    return found


@pytest.mark.parametrize("tower", ["generator", "discriminator"])
@pytest.mark.parametrize("num_tokens", [[24, 24], [24, 9, 2]], ids=["full", "padded"])
@torch.no_grad()
def test_a_tower_is_transformers_modern_bert(
    tower: str,
    num_tokens: list[int],
    config: RunConfig,
    make_batch: MakeBatch,
    scrambled: Scrambled,
) -> None:
    model, batch = scrambled(config), make_batch(config, num_tokens)
    mask = batch.attention_mask_BL
    theirs = transformers_model(
        getattr(model, tower).encoder, model.embeddings.word.weight[: model.vocab_size]
    )
    wanted = theirs(
        input_ids=batch.input_ids_BL, attention_mask=None if mask is None else mask.long()
    ).last_hidden_state
    real = torch.ones_like(batch.input_ids_BL, dtype=torch.bool) if mask is None else mask
    assert wanted[real].std() > 0.1
    some = None if mask is None else real.flatten().nonzero().squeeze(1)
    atol = 1e-5 * wanted[real].abs().max().item()
    for found in (vectors(model, tower, batch), vectors(model, tower, batch, some)):
        torch.testing.assert_close(found[real], wanted[real], rtol=0, atol=atol)


def naive_layer(layer: modern.Layer, hidden: Tensor, reach: int, theta: float) -> Tensor:
    """One row [L, D] through the layer, head by head and query by query, in float64."""
    p = {name: value.detach().double() for name, value in layer.named_parameters()}
    length, width = hidden.shape

    def normed(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() * p[name]

    def turned(x: Tensor, place: int) -> Tensor:
        pairs = torch.complex(x[:32], x[32:])
        angle = place / theta ** (torch.arange(32, dtype=torch.float64) / 32)
        pairs = pairs * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([pairs.real, pairs.imag])

    normed_hidden = normed("attention_layer_norm.weight", hidden)
    query, key, value = (normed_hidden @ p["qkv.weight"].T).split(width, dim=-1)
    context = torch.zeros_like(hidden)
    for head in range(layer.num_heads):
        at = slice(head * 64, head * 64 + 64)
        for i in range(length):
            near = range(max(0, i - reach), min(length, i + reach + 1))
            scores = torch.stack([turned(query[i, at], i) @ turned(key[j, at], j) for j in near])
            context[i, at] = (scores / 8).softmax(0) @ value[near.start : near.stop, at]
    hidden = hidden + context @ p["attention_output.weight"].T
    inner, gate = (normed("ffn_layer_norm.weight", hidden) @ p["ffn_in.weight"].T).chunk(2, -1)
    gelu = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    return hidden + (gelu * gate) @ p["ffn_out.weight"].T


@pytest.mark.parametrize("reach", [2, 30])
@torch.no_grad()
def test_a_layer_is_the_pre_norm_formula(
    reach: int, config: RunConfig, scrambled: Scrambled
) -> None:
    model = scrambled(config)
    assert model.discriminator is not None
    encoder = model.discriminator.encoder
    assert isinstance(encoder, modern.Encoder)
    layer = encoder.layers[1]
    assert isinstance(layer, modern.Layer)
    hidden = torch.randn(7, 128, generator=torch.Generator().manual_seed(0))
    hidden = hidden.double()
    angles = encoder._angles(100.0, hidden, 7, None)  # made in float32
    bias = ops.attention_bias(local_mask(None, None, 7, 2 * reach, hidden.device), hidden)
    found = layer.double()(hidden, Layout(1, 7, bias, None, angles))
    torch.testing.assert_close(found, naive_layer(layer, hidden, reach, 100.0), rtol=0, atol=1e-5)


def test_a_document_in_a_packed_row_gives_what_it_gives_alone(
    config: RunConfig, scrambled: Scrambled
) -> None:
    model, batch = scrambled(config).double(), packed_batch()
    real = (batch.block_ids_BL > 0).flatten()  # type: ignore[operator]
    some = batch._replace(places_T=real.nonzero().squeeze(1))
    for together in (model(batch), model(some)):
        for row, place in places():
            positions = batch.masked_positions_BN[row]
            within = (positions >= place.start) & (positions < place.stop)
            slots = torch.nonzero(within & (batch.masked_weights_BN[row] > 0)).squeeze(1)
            single: Losses = model(alone(batch, row, place, slots))
            found = together.generator_logits_BNV[row, slots]
            assert single.generator_logits_BNV is not None
            torch.testing.assert_close(found, single.generator_logits_BNV[0], rtol=0, atol=1e-5)
            logits = together.discriminator_logits_BL[row, place]
            assert single.discriminator_logits_BL is not None
            torch.testing.assert_close(logits, single.discriminator_logits_BL[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_token_of_a_local_layer_reads_its_window_alone(
    config: RunConfig, scrambled: Scrambled
) -> None:
    model = scrambled(config)
    assert model.discriminator is not None
    encoder = model.discriminator.encoder
    assert isinstance(encoder, modern.Encoder)
    hidden = torch.randn(24, 128, generator=torch.Generator().manual_seed(0))
    angles = encoder._angles(1e4, hidden, 24, None)
    bias = ops.attention_bias(local_mask(None, None, 24, 6, hidden.device), hidden)
    layout = Layout(1, 24, bias, None, angles)
    other = hidden.clone()
    other[10] += torch.randn(128, generator=torch.Generator().manual_seed(1))
    layer = encoder.layers[1]
    assert isinstance(layer, modern.Layer)
    layer.qkv.weight *= 0.1  # no attention weight so small that it changes nothing
    changed = (layer(other, layout) != layer(hidden, layout)).any(dim=-1)
    assert changed.nonzero().flatten().tolist() == list(range(7, 14))


def test_local_masks_leave_no_query_without_a_key() -> None:
    real = torch.arange(30)[None] < torch.tensor([[30], [4], [1]])
    for blocks in (None, real.short()):
        mask = local_mask(real, blocks, 30, 4, real.device)
        assert mask is not None
        assert mask.shape == (3, 1, 30, 30)
        assert mask.any(dim=-1).all()
        assert not mask[1, 0, :4, 4:].any()
    assert local_mask(None, None, 30, 58, real.device) is None


def gradients(model: JointElectra, batch: Batch) -> tuple[Losses, dict[str, Tensor]]:
    random.seed_dropout(0, 0, 0)
    model.train().zero_grad()
    losses = model(batch)
    losses.total.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == dict(model.named_parameters()).keys()
    return losses, found


def test_checkpointed_layers_give_the_same_bits_and_left_out_padding_the_same_numbers(
    config: RunConfig, make_batch: MakeBatch
) -> None:
    batch = make_batch(config, [24, 9, 2])
    losses, wanted = gradients(JointElectra(config), batch)
    again = replace(config, engine=EngineConfig(activation_checkpointing=True))
    same, found = gradients(JointElectra(again), batch)
    assert torch.equal(losses.total, same.total)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)

    calm = replace(config, model=replace(config.model, **CALM))
    losses, wanted = gradients(JointElectra(calm), batch)
    assert batch.attention_mask_BL is not None
    some = batch.attention_mask_BL.flatten().nonzero().squeeze(1)
    same, found = gradients(JointElectra(calm), batch._replace(places_T=some))
    assert same.total.item() == pytest.approx(losses.total.item(), rel=1e-6)
    for name in wanted:
        scale = wanted[name].abs().max().item()
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=2e-5 * max(scale, 1e-3))


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself; an error would end it
@pytest.mark.slow
def test_compiled_layers_give_the_same_losses(config: RunConfig, make_batch: MakeBatch) -> None:
    batch = make_batch(config, [24, 9])
    losses, _ = gradients(JointElectra(config), batch)
    compiled = replace(config, engine=EngineConfig(compile=True))
    torch._dynamo.reset()
    counters.clear()
    same, _ = gradients(JointElectra(compiled), batch)
    # Of each tower the first layer, two local ones, a global and a local one, whole.
    assert counters["stats"]["unique_graphs"] == 8
    assert not counters["graph_break"]
    assert same.total.item() == pytest.approx(losses.total.item(), rel=1e-5)


def test_the_gradient_of_attention_with_turned_queries_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 5, 3, 1, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    angle = torch.rand(1, 5, 1, 1, 2, generator=generator, dtype=torch.float64)

    def attended(qkv: Tensor) -> Tensor:
        turned: Tensor = modern._Rotate.apply(qkv, angle.cos(), angle.sin())
        return ops.attention(turned, None, 0.0, None)

    assert torch.autograd.gradcheck(attended, qkv)


def test_dropout_lies_behind_embeddings_attention_weights_and_both_outputs(
    config: RunConfig, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, keys = [], set()
    keep_mask = random.keep_mask

    def spy(words: Tensor, shape: tuple[int, ...], p: float, like: Tensor) -> Tensor:
        columns.append(shape[-1])
        keys.add((int(words[0]), int(words[1])))
        return keep_mask(words, shape, p, like)

    monkeypatch.setattr(random, "keep_mask", spy)
    gradients(JointElectra(config), make_batch(config, [24]))
    # Two towers of five layers: attention's masks have a column a position.
    assert columns.count(24) == 2 * 5
    assert len(columns) == 2 * (1 + 3 * 5)
    assert len(keys) == len(columns)  # no site shares its noise


def test_norms_and_the_two_biases_do_not_decay_and_outputs_start_smaller(
    make_config: MakeConfig,
) -> None:
    model = JointElectra(make_config(backbone="modern", num_layers=4, initializer_range=0.02))
    plain = {id(p) for p in decay_groups(model, 0.01)[1]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in plain}
    assert names == {
        name
        for name, p in model.named_parameters()
        if p.dim() == 1 or name == "generator.head.bias"
    }
    assert {n for n in names if n.endswith("bias")} == {
        "generator.head.bias",
        "discriminator.head.out.bias",
    }
    assert model.discriminator is not None
    layer = model.discriminator.encoder.layers[0]
    assert isinstance(layer, modern.Layer)
    share = layer.ffn_out.weight.std().item() / layer.ffn_in.weight.std().item()
    assert share == pytest.approx(8**-0.5, rel=0.05)
