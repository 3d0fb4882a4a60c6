from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from electra_dist.config.schema import RunConfig
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.model.encoder import Layer

MakeBatch = Callable[..., Batch]
Scrambled = Callable[..., JointElectra]


def outputs(model: JointElectra, batch: Batch, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Last vectors of both towers."""
    assert model.discriminator is not None
    embedded = model.embeddings(batch.input_ids_BL, batch.token_type_ids_BL)
    return model.generator.encoder(embedded, mask), model.discriminator.encoder(embedded, mask)


def test_no_mask_is_a_mask_that_is_true_everywhere(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model, batch = scrambled(config), make_batch(config, [24, 24])
    everything = torch.ones(2, 24, dtype=torch.bool)
    for bare, masked in zip(
        outputs(model, batch, None), outputs(model, batch, everything), strict=True
    ):
        torch.testing.assert_close(bare, masked, rtol=0, atol=2e-5)


def test_what_stands_in_the_padding_never_changes_a_real_position(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model, batch = scrambled(config), make_batch(config, [24, 9, 1])
    mask = batch.attention_mask_BL
    assert mask is not None
    noise = torch.randint(0, 90, (3, 24), generator=torch.Generator().manual_seed(0))
    other = batch._replace(
        input_ids_BL=torch.where(mask, batch.input_ids_BL, noise),
        token_type_ids_BL=torch.where(mask, batch.token_type_ids_BL, noise % 2),
    )
    for first, second in zip(outputs(model, batch, mask), outputs(model, other, mask), strict=True):
        assert torch.equal(first[mask], second[mask])
        assert not torch.equal(first[~mask], second[~mask])


def test_a_padded_row_gives_what_the_row_alone_gives(
    config: RunConfig, make_batch: MakeBatch, scrambled: Scrambled
) -> None:
    model, batch = scrambled(config), make_batch(config, [24, 9])
    alone = batch._replace(
        input_ids_BL=batch.input_ids_BL[1:, :9], token_type_ids_BL=batch.token_type_ids_BL[1:, :9]
    )
    for padded, short in zip(
        outputs(model, batch, batch.attention_mask_BL), outputs(model, alone, None), strict=True
    ):
        torch.testing.assert_close(padded[1, :9], short[0], rtol=0, atol=2e-5)


def naive_layer(layer: Layer, hidden: Tensor) -> Tensor:
    """One row [L, D] through the layer, head by head and query by query, in float64."""
    p = {name: value.detach().double() for name, value in layer.named_parameters()}
    length, width = hidden.shape
    query, key, value = (hidden @ p["qkv.weight"].T + p["qkv.bias"]).split(width, dim=-1)
    context = torch.zeros_like(hidden)
    for head in range(layer.num_heads):
        columns = slice(head * 64, head * 64 + 64)
        for i in range(length):
            scores = torch.stack([query[i, columns] @ key[j, columns] for j in range(length)])
            context[i, columns] = (scores / 64**0.5).softmax(0) @ value[:, columns]
    attended = context @ p["attention_output.weight"].T + p["attention_output.bias"]
    hidden = normed(p, "attention_layer_norm", hidden + attended)
    inner = hidden @ p["ffn_in.weight"].T + p["ffn_in.bias"]
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    return normed(p, "ffn_layer_norm", hidden + inner @ p["ffn_out.weight"].T + p["ffn_out.bias"])


def normed(p: dict[str, Tensor], name: str, values: Tensor) -> Tensor:
    centred = values - values.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def test_a_layer_is_the_post_ln_formula(config: RunConfig, scrambled: Scrambled) -> None:
    model = scrambled(config)
    assert model.discriminator is not None
    layer = cast(Layer, model.discriminator.encoder.layers[0])
    hidden = torch.randn(1, 7, 128, generator=torch.Generator().manual_seed(0))
    wanted = naive_layer(layer, hidden[0].double())
    torch.testing.assert_close(layer(hidden, None)[0].double(), wanted, rtol=0, atol=1e-5)


def dropped_shares(
    model: JointElectra, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[float], list[float]]:
    """Dropout probabilities in use in one pass: of activations and of attention weights."""
    hidden: list[float] = []
    attention: list[float] = []
    dropout, attend = F.dropout, F.scaled_dot_product_attention

    def spy_dropout(values: Tensor, p: float, training: bool) -> Tensor:
        hidden.append(p if training else 0.0)
        return dropout(values, p, training)

    def spy_attend(*args: Tensor, dropout_p: float, attn_mask: Tensor | None) -> Tensor:
        attention.append(dropout_p)
        return attend(*args, dropout_p=dropout_p, attn_mask=attn_mask)

    monkeypatch.setattr(nn.functional, "dropout", spy_dropout)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy_attend)
    model(batch)
    return hidden, attention


def test_dropout_lies_behind_embeddings_attention_weights_and_both_outputs(
    make_config: Callable[..., RunConfig],
    make_batch: MakeBatch,
    scrambled: Scrambled,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(hidden_dropout=0.25, attention_dropout=0.125)
    model, batch = scrambled(config), make_batch(config, [24])
    assert dropped_shares(model, batch, monkeypatch) == ([0.0] * 10, [0.0] * 4)
    hidden, attention = dropped_shares(model.train(), batch, monkeypatch)
    # Two towers, each: embeddings, and two layers with two outputs and one attention.
    assert hidden == [0.25] * 10
    assert attention == [0.125] * 4
