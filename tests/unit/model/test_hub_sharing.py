"""Export and import where the towers do not share as ELECTRA's do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import ElectraForMaskedLM, ElectraForPreTraining

from electra_dist.config.schema import RunConfig
from electra_dist.errors import UserError
from electra_dist.model import hub
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from tests.variants import VARIANTS, variant_of

MakeBatch = Callable[..., Batch]
Scrambled = Callable[..., JointElectra]
SHARING = ["untied tables", "one transformer", "disentangled"]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from electra_dist.data.vocab import train_wordpiece

    path = tmp_path_factory.mktemp("corpus") / "tokenizer.json"
    train_wordpiece(["the cat sat on the mat", "unhappily, a dog saw it"] * 3, 90).save(str(path))
    return path


@torch.no_grad()
def logits_of(kind: type, folder: Path, ids: Tensor, batch: Batch) -> Tensor:
    model, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not any(info.values()), info
    found: Tensor = model.eval()(input_ids=ids, token_type_ids=batch.token_type_ids_BL).logits
    return found


@pytest.mark.parametrize("variant", SHARING)
@torch.no_grad()
def test_transformers_computes_what_both_towers_compute(
    variant: str,
    config: RunConfig,
    make_batch: MakeBatch,
    scrambled: Scrambled,
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    model, batch = scrambled(variant_of(config, variant)), make_batch(config, [24, 24])
    assert model.discriminator is not None
    hub.export(model, tokenizer, tmp_path / "out")
    found = logits_of(ElectraForPreTraining, tmp_path / "out", batch.input_ids_BL, batch)
    wanted = model.discriminator(batch.input_ids_BL, batch.token_type_ids_BL, None)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)

    everywhere = torch.arange(24).expand(2, 24)
    found = logits_of(ElectraForMaskedLM, tmp_path / "out/generator", batch.masked_ids_BL, batch)
    wanted = model.generator(batch.masked_ids_BL, batch.token_type_ids_BL, None, everywhere)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("variant", SHARING)
@torch.no_grad()
def test_load_reads_back_the_same_towers(
    variant: str, config: RunConfig, scrambled: Scrambled, tokenizer: Path, tmp_path: Path
) -> None:
    model = scrambled(variant_of(config, variant))
    hub.export(model, tokenizer, tmp_path / "out")
    loaded = hub.load(tmp_path / "out")
    # One transformer: the generator's size is not read; it comes back as what it is.
    for knob in ("untied_generator", "untied_generator_embeddings", "embedding_sharing"):
        assert getattr(loaded.config, knob) == getattr(model.config, knob)
    weights, again = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert again.keys() == weights.keys()
    for name, weight in weights.items():
        if ".difference." in name:  # of two sums in float32
            torch.testing.assert_close(again[name], weight, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(again[name], weight), name


def test_only_the_generators_folder_says_how_it_shares(
    config: RunConfig, scrambled: Scrambled, tokenizer: Path, tmp_path: Path
) -> None:
    for name in ("electra", *SHARING):
        hub.export(scrambled(variant_of(config, name)), tokenizer, tmp_path / name)
        marks = [
            json.loads((tmp_path / name / place / "config.json").read_bytes()).get("electra_dist")
            for place in (".", "generator")
        ]
        assert marks == [None, VARIANTS[name].get("model")]
    # Without a generator beside it, a discriminator is one as any other.
    (tmp_path / "disentangled/generator").rename(tmp_path / "generator")
    imported = hub.read(tmp_path / "disentangled")
    assert imported.config.model.embedding_sharing == "tied"
    path = tmp_path / "generator/config.json"
    values = json.loads(path.read_bytes())
    path.write_text(json.dumps({**values, "electra_dist": {"embedding_sharing": "later"}}))
    with pytest.raises(UserError, match=r"embedding_sharing = 'later' is unknown here"):
        hub.read(tmp_path / "disentangled", tmp_path / "generator")


@pytest.mark.parametrize("variant", ["electric", "electric, disentangled", "uniform generator"])
@torch.no_grad()
def test_where_there_is_no_masked_language_model_the_discriminator_is_exported_alone(
    variant: str,
    config: RunConfig,
    make_batch: MakeBatch,
    scrambled: Scrambled,
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    model, batch = scrambled(variant_of(config, variant)), make_batch(config, [24])
    assert model.discriminator is not None
    hub.export(model, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out/generator").exists()
    found = logits_of(ElectraForPreTraining, tmp_path / "out", batch.input_ids_BL, batch)
    wanted = model.discriminator(batch.input_ids_BL, batch.token_type_ids_BL, None)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)
