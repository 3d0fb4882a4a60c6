"""What a `modern` run exports is transformers' ModernBERT, and is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    ModernBertForMaskedLM,
    ModernBertForTokenClassification,
    ModernBertModel,
)

from electra_dist.config.schema import RunConfig
from electra_dist.data.vocab import train_wordpiece
from electra_dist.errors import UserError
from electra_dist.model import hub
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.model.padding import stored_parameters

MakeBatch = Callable[..., Batch]
Scrambled = Callable[..., JointElectra]
MakeConfig = Callable[..., RunConfig]

MODERN: dict[str, Any] = {
    "backbone": "modern",
    "num_layers": 4,
    "generator_num_layers": 4,
    "local_attention_window": 6,
}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "tokenizer.json"
    train_wordpiece(["the cat sat on the mat", "a dog saw the cat"] * 3, 90).save(str(path))
    return path


def load_with_transformers(kind: Any, folder: Path) -> Any:
    model, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def assert_same(found: Tensor, wanted: Tensor, mask: Tensor | None) -> None:
    if mask is not None:
        found, wanted = found[mask], wanted[mask]
    assert wanted.std() > 0.1
    scale = max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("num_tokens", [[24, 24], [24, 9, 3]], ids=["full", "padded"])
@pytest.mark.parametrize("widths", [(32, 64), (128, 128)], ids=["projected", "as wide"])
@torch.no_grad()
def test_transformers_computes_what_the_joint_module_computes(
    widths: tuple[int, int],
    num_tokens: list[int],
    tmp_path: Path,
    tokenizer: Path,
    make_config: MakeConfig,
    make_batch: MakeBatch,
    scrambled: Scrambled,
) -> None:
    embedding, generator_width = widths
    config = make_config(**MODERN, embedding_size=embedding, generator_hidden_size=generator_width)
    model, batch = scrambled(config), make_batch(config, num_tokens)
    hub.export(model, tokenizer, tmp_path / "out")
    assert model.discriminator is not None
    mask = batch.attention_mask_BL
    long = None if mask is None else mask.long()

    theirs = load_with_transformers(ModernBertForTokenClassification, tmp_path / "out")
    found = theirs(input_ids=batch.input_ids_BL, attention_mask=long).logits.squeeze(-1)
    wanted = model.discriminator(batch.input_ids_BL, batch.token_type_ids_BL, mask)
    assert_same(found, wanted, mask)

    theirs = load_with_transformers(ModernBertForMaskedLM, tmp_path / "out" / "generator")
    found = theirs(input_ids=batch.masked_ids_BL, attention_mask=long).logits
    everywhere = torch.arange(24).expand(len(num_tokens), 24)
    assert model.generator is not None
    wanted = model.generator(batch.masked_ids_BL, batch.token_type_ids_BL, mask, everywhere)
    assert found.shape[-1] == 90
    assert_same(found, wanted, mask)

    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    encoded = their_tokenizer(["the cat"], return_tensors="pt")
    assert set(encoded) == {"input_ids", "attention_mask"}
    ModernBertModel.from_pretrained(tmp_path / "out", local_files_only=True)(**encoded)


@pytest.mark.parametrize("objective", ["electra", "mlm"])
def test_a_model_with_tables_as_wide_as_itself_is_read_back_exactly(
    objective: str,
    tmp_path: Path,
    tokenizer: Path,
    make_config: MakeConfig,
    scrambled: Scrambled,
) -> None:
    config = make_config(objective, **MODERN, embedding_size=128)
    model = scrambled(config)
    hub.export(model, tokenizer, tmp_path / "out")
    found = hub.load(tmp_path / "out")
    assert found.objective.name == objective
    again = stored_parameters(found)
    product = "discriminator" if objective == "electra" else "generator"
    for name, weight in stored_parameters(model).items():
        if name.startswith(("embeddings.", product)):
            assert torch.equal(weight, again[name]), name
    for field in ("local_attention_window", "global_attention_every", "rope_theta", "backbone"):
        assert getattr(found.config, field) == getattr(config.model, field)


def test_a_projected_table_comes_back_as_wide_as_the_model(
    tmp_path: Path,
    tokenizer: Path,
    make_config: MakeConfig,
    make_batch: MakeBatch,
    scrambled: Scrambled,
) -> None:
    config = make_config(**MODERN)
    model, batch = scrambled(config), make_batch(config, [24, 9])
    hub.export(model, tokenizer, tmp_path / "out")
    found = hub.load(tmp_path / "out").eval()
    assert (found.config.embedding_size, config.model.embedding_size) == (128, 32)
    inputs = (batch.input_ids_BL, batch.token_type_ids_BL, batch.attention_mask_BL)
    assert model.discriminator is not None
    assert found.discriminator is not None
    with torch.no_grad():
        assert_same(found.discriminator(*inputs), model.discriminator(*inputs), inputs[2])
    with pytest.raises(UserError, match="share no table any more; leave the generator out"):
        hub.read(tmp_path / "out", tmp_path / "out" / "generator")
    with pytest.raises(UserError, match="its decoder is not its word table"):
        hub.read(tmp_path / "out" / "generator")


def test_another_modern_bert_is_refused_in_a_sentence(
    tmp_path: Path, tokenizer: Path, make_config: MakeConfig, scrambled: Scrambled
) -> None:
    hub.export(scrambled(make_config(**MODERN, embedding_size=128)), tokenizer, tmp_path / "out")
    config, path = tmp_path / "out" / "config.json", tmp_path / "out" / "model.safetensors"
    good = json.loads(config.read_text())
    for fields, words in (
        ({"num_attention_heads": 4}, "num_attention_heads = 4, but this encoder reads 2 only"),
        ({"norm_bias": True}, "norm_bias = True"),
        ({"intermediate_size": 300}, "intermediate_size = 300"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types = "),
        ({"vocab_size": 91}, r"has shape \(90, 128\), config\.json says \(91, 128\)"),
    ):
        config.write_text(json.dumps({**good, **fields}))
        with pytest.raises(UserError, match=words):
            hub.read(tmp_path / "out")
    config.write_text(json.dumps(good))
    weights = safetensors.torch.load(path.read_bytes())  # not mapped: the file is written over
    del weights["model.layers.2.mlp.Wi.weight"]
    path.write_bytes(safetensors.torch.save(weights))
    with pytest.raises(UserError, match=r"the weights lack model\.layers\.2\.mlp"):
        hub.read(tmp_path / "out")
    del weights["model.embeddings.tok_embeddings.weight"]
    path.write_bytes(safetensors.torch.save(weights))
    with pytest.raises(UserError, match=r"the weights lack model\.embeddings\.tok_embeddings"):
        hub.read(tmp_path / "out")
