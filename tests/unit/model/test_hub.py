import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraModel,
    PreTrainedModel,
)

from electra_dist.config.schema import RunConfig
from electra_dist.data.tokenize import load_tokenizer
from electra_dist.data.vocab import train_wordpiece
from electra_dist.errors import UserError
from electra_dist.finetune.encoding import TextEncoder
from electra_dist.model import hub
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from tests.made_up import ROBERTA, trained

MakeBatch = Callable[..., Batch]
Scrambled = Callable[..., JointElectra]
MakeConfig = Callable[..., RunConfig]

SHAPES = {
    "both towers project": {"embedding_size": 32, "hidden_size": 128, "generator_hidden_size": 64},
    "only the generator": {"embedding_size": 128, "hidden_size": 128, "generator_hidden_size": 64},
    "none": {"embedding_size": 128, "hidden_size": 128, "generator_hidden_size": 128},
}
SENTENCES = ["the cat sat on the mat", "a dog, unhappily, saw the cat", "unhappy cats sat"] * 3


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "tokenizer.json"
    train_wordpiece(SENTENCES, 90).save(str(path))
    return path


@pytest.fixture(params=list(SHAPES))
def exported(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tokenizer: Path,
    make_config: MakeConfig,
    scrambled: Scrambled,
) -> tuple[JointElectra, Path]:
    model = scrambled(make_config(**SHAPES[request.param]))
    hub.export(model, tokenizer, tmp_path / "out")
    return model, tmp_path / "out"


def load_with_transformers(kind: Any, folder: Path) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the weights of the folder that it has no place for."""
    model, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return model.eval(), set(info["unexpected_keys"])


@torch.no_grad()
def ask(model: PreTrainedModel, ids: Tensor, batch: Batch) -> Tensor:
    """Logits, or last vectors of a model without a head."""
    mask = batch.attention_mask_BL
    output = model(
        input_ids=ids,
        token_type_ids=batch.token_type_ids_BL,
        attention_mask=None if mask is None else mask.long(),
    )
    return output.logits if "logits" in output else output.last_hidden_state


def assert_same(found: Tensor, wanted: Tensor, batch: Batch) -> None:
    """Equal to 1e-5 of the largest value, at real positions."""
    mask = batch.attention_mask_BL
    if mask is not None:
        found, wanted = found[mask], wanted[mask]
    assert wanted.std() > 0.1
    scale = max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("num_tokens", [[24, 24], [24, 9, 17]], ids=["full", "padded"])
@torch.no_grad()
def test_transformers_computes_what_the_joint_module_computes(
    exported: tuple[JointElectra, Path],
    num_tokens: list[int],
    config: RunConfig,
    make_batch: MakeBatch,
) -> None:
    model, folder = exported
    assert model.discriminator is not None
    batch = make_batch(config, num_tokens)
    inputs = (batch.token_type_ids_BL, batch.attention_mask_BL)

    discriminator, unexpected = load_with_transformers(ElectraForPreTraining, folder)
    assert not unexpected
    wanted = model.discriminator(batch.input_ids_BL, *inputs)
    assert_same(ask(discriminator, batch.input_ids_BL, batch), wanted, batch)

    body, unexpected = load_with_transformers(ElectraModel, folder)
    assert all(name.startswith("discriminator_predictions.") for name in unexpected)
    embedded = model.embeddings(batch.input_ids_BL, batch.token_type_ids_BL)
    wanted = model.discriminator.encoder(embedded, batch.attention_mask_BL)
    assert_same(ask(body, batch.input_ids_BL, batch), wanted, batch)

    generator, unexpected = load_with_transformers(ElectraForMaskedLM, folder / "generator")
    assert not unexpected
    everywhere = torch.arange(24).expand(len(num_tokens), 24)
    wanted = model.generator(batch.masked_ids_BL, *inputs, everywhere)
    assert_same(ask(generator, batch.masked_ids_BL, batch), wanted, batch)
    assert generator.get_input_embeddings().weight is generator.get_output_embeddings().weight


def test_load_reads_back_exactly_what_export_wrote(exported: tuple[JointElectra, Path]) -> None:
    model, folder = exported
    loaded = hub.load(folder)
    weights, again = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert again.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, again[name]), name
    assert loaded.config == model.config


@torch.no_grad()
def test_a_model_trained_with_mlm_is_a_masked_language_model(
    tmp_path: Path,
    tokenizer: Path,
    make_config: MakeConfig,
    make_batch: MakeBatch,
    scrambled: Scrambled,
) -> None:
    config = make_config("mlm")
    model = scrambled(config)
    hub.export(model, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out" / "generator").exists()
    batch = make_batch(config, [24, 11])
    masked_lm, unexpected = load_with_transformers(ElectraForMaskedLM, tmp_path / "out")
    assert not unexpected
    wanted = model.generator(
        batch.masked_ids_BL,
        batch.token_type_ids_BL,
        batch.attention_mask_BL,
        torch.arange(24).expand(2, 24),
    )
    assert_same(ask(masked_lm, batch.masked_ids_BL, batch), wanted, batch)
    loaded = hub.load(tmp_path / "out")
    assert loaded.discriminator is None
    for name, weight in model.named_parameters():
        assert torch.equal(weight, loaded.get_parameter(name)), name


def test_the_exported_tokenizer_encodes_a_pair_with_the_corpus_ids(
    tmp_path: Path, tokenizer: Path, config: RunConfig, scrambled: Scrambled
) -> None:
    hub.export(scrambled(config), tokenizer, tmp_path / "out")
    vocabulary = train_wordpiece(SENTENCES, 90)
    cls, sep, pad, mask = (vocabulary.token_to_id(f"[{n}]") for n in ("CLS", "SEP", "PAD", "MASK"))
    first = vocabulary.encode("The CAT sat", add_special_tokens=False).ids
    second = vocabulary.encode("unhappily, a dog", add_special_tokens=False).ids
    for folder in (tmp_path / "out", tmp_path / "out" / "generator"):
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoded = found(["The CAT sat"], ["unhappily, a dog"], padding="max_length", max_length=30)
        ids = [cls, *first, sep, *second, sep]
        types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        unused = 30 - len(ids)
        assert encoded["input_ids"] == [ids + [pad] * unused]
        assert encoded["token_type_ids"] == [types + [0] * unused]
        assert encoded["attention_mask"] == [[1] * len(ids) + [0] * unused]
        assert (found.mask_token_id, found.model_max_length) == (mask, 40)
        assert json.loads((folder / "config.json").read_text())["pad_token_id"] == pad


def test_a_tokenizer_with_roberta_s_names_goes_the_whole_way(
    tmp_path: Path, config: RunConfig, scrambled: Scrambled
) -> None:
    trained("bpe", ROBERTA).save(str(tmp_path / "their.json"))
    prepared = load_tokenizer(tmp_path / "their.json")
    prepared.save(str(tmp_path / "tokenizer.json"))
    hub.export(scrambled(config), tmp_path / "tokenizer.json", tmp_path / "out")
    cls, sep, pad = (prepared.token_to_id(name) for name in ("<s>", "</s>", "<pad>"))
    first, second = (prepared.encode(t, add_special_tokens=False).ids for t in ("the cats", "hats"))
    found = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert (found.mask_token, found.mask_token_id) == ("<mask>", prepared.token_to_id("<mask>"))
    encoded = found(["the cats"], ["hats"], padding="max_length", max_length=30)
    ids = [cls, *first, sep, *second, sep]
    assert encoded["input_ids"] == [ids + [pad] * (30 - len(ids))]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == pad
    encoder = TextEncoder(tmp_path / "out", max_length=30)
    assert encoder.rows(["the cats"], ["hats"])[0].ids == ids
    assert encoder.pad_id == pad


def test_a_folder_is_readable_by_whom_the_umask_lets(
    tmp_path: Path, tokenizer: Path, config: RunConfig, scrambled: Scrambled
) -> None:
    before = os.umask(0o027)
    try:
        hub.export(scrambled(config), tokenizer, tmp_path / "out")
    finally:
        os.umask(before)
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o640}


def test_a_model_is_not_overwritten_but_a_cut_off_export_is_made_again(
    tmp_path: Path,
    tokenizer: Path,
    config: RunConfig,
    scrambled: Scrambled,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, out = scrambled(config), tmp_path / "out"

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    save = safetensors.torch.save
    for failing_call in (1, 2):
        calls = iter(range(1, 3))
        monkeypatch.setattr(
            safetensors.torch,
            "save",
            lambda *a, calls=calls, last=failing_call, **k: (
                full_disk() if next(calls) == last else save(*a, **k)
            ),
        )
        with pytest.raises(OSError, match="No space"):
            hub.export(model, tokenizer, out)
    monkeypatch.undo()
    hub.export(model, tokenizer, out)
    with pytest.raises(UserError, match="holds a model already"):
        hub.export(model, tokenizer, out)
    assert torch.equal(
        hub.load(out).get_parameter("embeddings.word.weight"), model.embeddings.word.weight
    )


def save_with_transformers(kind: Any, folder: Path, **fields: Any) -> PreTrainedModel:
    """A model of transformers' own making, its biases not zero."""
    values = {
        "vocab_size": 90,
        "embedding_size": 32,
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "max_position_embeddings": 40,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = kind(ElectraConfig(**{**values, **fields})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("embedding_size", [32, 128])
@torch.no_grad()
def test_a_model_saved_by_transformers_loads_with_the_same_answers(
    embedding_size: int, tmp_path: Path, config: RunConfig, make_batch: MakeBatch
) -> None:
    theirs = save_with_transformers(ElectraForPreTraining, tmp_path, embedding_size=embedding_size)
    batch = make_batch(config, [24, 13])
    ours = hub.load(tmp_path).eval()
    assert ours.discriminator is not None
    found = ours.discriminator(batch.input_ids_BL, batch.token_type_ids_BL, batch.attention_mask_BL)
    assert_same(found, ask(theirs, batch.input_ids_BL, batch), batch)


@torch.no_grad()
def test_a_bare_electra_model_loads_and_its_heads_are_fresh(
    tmp_path: Path, config: RunConfig, make_batch: MakeBatch
) -> None:
    theirs = save_with_transformers(ElectraModel, tmp_path)
    batch = make_batch(config, [24, 13])
    ours = hub.load(tmp_path).eval()
    assert ours.discriminator is not None
    embedded = ours.embeddings(batch.input_ids_BL, batch.token_type_ids_BL)
    found = ours.discriminator.encoder(embedded, batch.attention_mask_BL)
    assert_same(found, ask(theirs, batch.input_ids_BL, batch), batch)
    assert not ours.discriminator.head.dense.bias.any()


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_is_no_electra_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no readable config\.json"):
        hub.load(tmp_path / "nowhere")
    save_with_transformers(ElectraForPreTraining, tmp_path)
    config = tmp_path / "config.json"
    good = config.read_text()
    for fields, words in (
        ({"model_type": "bert"}, "model_type = 'bert'; give an ELECTRA model"),
        ({"num_attention_heads": 4}, "num_attention_heads = 4, but this encoder reads 2 only"),
        ({"intermediate_size": 300}, "intermediate_size = 300"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"num_hidden_layers": 4}, r"the weights lack electra\.encoder\.layer\.3\."),
        ({"vocab_size": 91}, r"has shape \(90, 32\), config\.json says \(91, 32\)"),
    ):
        edit(config, **fields)
        with pytest.raises(UserError, match=words):
            hub.load(tmp_path)
        config.write_text(good)
    config.write_text("{")
    with pytest.raises(UserError, match=r"holds no readable config\.json"):
        hub.load(tmp_path)


def test_missing_or_cut_off_weights_are_refused_in_a_sentence(tmp_path: Path) -> None:
    save_with_transformers(ElectraForPreTraining, tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    weights = safetensors.torch.load(whole)
    del weights["electra.encoder.layer.1.attention.self.key.bias"]
    path.write_bytes(safetensors.torch.save(weights))
    with pytest.raises(UserError, match=r"the weights lack electra\.encoder\.layer\.1\."):
        hub.load(tmp_path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="no whole safetensors file"):
        hub.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="only safetensors weights are read"):
        hub.load(tmp_path)


def test_a_generator_of_another_make_is_refused_too(
    tmp_path: Path, tokenizer: Path, config: RunConfig, scrambled: Scrambled
) -> None:
    hub.export(scrambled(config), tokenizer, tmp_path / "out")
    edit(tmp_path / "out" / "generator" / "config.json", num_attention_heads=2)
    with pytest.raises(UserError, match=r"generator: num_attention_heads = 2"):
        hub.load(tmp_path / "out")
