"""Hugging Face folders in and out, and what is made of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from electra_dist.checkpoint.foreign_deepspeed import ForeignState, read_deepspeed
from electra_dist.checkpoint.reshard import CheckpointReader, differences
from electra_dist.checkpoint.universal import export_universal
from electra_dist.cli import main
from electra_dist.config import files
from electra_dist.config.schema import RunConfig
from electra_dist.errors import UserError
from electra_dist.model import hub
from electra_dist.model.electra import JointElectra
from electra_dist.model.padding import stored_parameters
from electra_dist.train import imports
from electra_dist.train.export import export_hf
from electra_dist.train.imports import import_deepspeed, import_hf
from tests.made_up import trained


def joint(objective: str = "electra", vocab_size: int = 320) -> tuple[JointElectra, RunConfig]:
    """A small joint module with weights of its own, none of them at its initial value."""
    words = ["--model.num_layers", "2", "--model.generator_num_layers", "2", "--seed", "3"]
    config = files.load(None, [*words, "--objective.name", objective], recipe="tiny")
    config = replace(config, model=replace(config.model, vocab_size=vocab_size))
    model = JointElectra(config)
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=noise)
    return model, config


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    trained("bpe").save(str(path))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("objective", ["electra", "mlm"])
def test_export_and_import_and_export_give_the_same_bytes(
    objective: str, tokenizer: Path, tmp_path: Path
) -> None:
    model, _ = joint(objective)
    hub.export(model, tokenizer, tmp_path / "hf")
    words = ["checkpoint", "import", "hf", str(tmp_path / "hf"), "--out", str(tmp_path / "made")]
    assert main(words) == 0
    with CheckpointReader(tmp_path / "made") as reader:
        reader.verify()
        assert {n: tuple(s) for n, s in reader.manifest.parameters.items()} == {
            n: tuple(p.shape) for n, p in model.named_parameters()
        }
        for name, parameter in model.named_parameters():
            assert torch.equal(torch.from_numpy(reader.read_whole(name)), parameter.data), name
            assert not reader.read_whole(name, "exp_avg").any()
        assert (reader.state["step"], reader.state["moments"]) == (0, "zero")
        assert reader.state["origin"]["fresh"] == []
    export_hf(tmp_path / "made", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "hf")


def test_a_discriminator_alone_needs_to_know_the_generator(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, config = joint()
    hub.export(model, tokenizer, tmp_path / "hf")
    (tmp_path / "hf/generator").rename(tmp_path / "generator")
    words = ["checkpoint", "import", "hf", str(tmp_path / "hf"), "--out"]
    assert main([*words, str(tmp_path / "made")]) == 2
    assert "comes without a generator; give its folder with --generator" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "a"), "--generator", str(tmp_path / "generator")]) == 0
    with CheckpointReader(tmp_path / "a") as reader:
        assert reader.state["origin"]["fresh"] == []
    # With a config the generator is as a run of that config would begin with it.
    (tmp_path / "config.json").write_text(files.to_json(config))
    assert main([*words, str(tmp_path / "b"), "--config", str(tmp_path / "config.json")]) == 0
    fresh = dict(JointElectra(config).named_parameters())
    with CheckpointReader(tmp_path / "b") as reader:
        assert reader.state["origin"]["fresh"] == ["generator.encoder", "generator.head"]
        for name, parameter in model.named_parameters():
            wanted = fresh[name] if name.startswith("generator.") else parameter
            assert torch.equal(torch.from_numpy(reader.read_whole(name)), wanted.data), name
    # A recipe of another size is named, not forced.
    assert main([*words, str(tmp_path / "c"), "--recipe", "small"]) == 2
    assert "in the given config it has shape" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_towers_that_do_not_share_their_tables_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    model, _ = joint()
    hub.export(model, tokenizer, tmp_path / "hf")
    path = tmp_path / "hf/generator/model.safetensors"
    weights = safetensors.torch.load(path.read_bytes())
    weights["electra.embeddings.word_embeddings.weight"] += 1.0
    path.write_bytes(safetensors.torch.save(weights))
    with pytest.raises(UserError, match=r"do not share embeddings\.word\.weight"):
        import_hf(tmp_path / "hf", tmp_path / "made")
    with pytest.raises(UserError, match="is an ElectraForMaskedLM itself"):
        import_hf(tmp_path / "hf/generator", tmp_path / "made", generator=tmp_path / "hf")


@pytest.fixture
def foreign(tokenizer: Path, tmp_path: Path) -> tuple[Path, RunConfig]:
    """A universal folder of a joint model."""
    model, config = joint()
    hub.export(model, tokenizer, tmp_path / "hf")
    made = import_hf(tmp_path / "hf", tmp_path / "made")
    export_universal(made, tmp_path / "universal")
    return tmp_path / "universal", config


def test_a_folder_of_deepspeed_s_with_its_config_can_be_exported_once_it_has_a_tokenizer(
    foreign: tuple[Path, RunConfig], tmp_path: Path
) -> None:
    folder, config = foreign
    made = import_deepspeed(folder, tmp_path / "plain")
    assert differences(tmp_path / "made", made) == []
    with pytest.raises(UserError, match="does not say what its model is; import it again with"):
        export_hf(made, tmp_path / "out")
    made = import_deepspeed(folder, tmp_path / "configured", config=config)
    with pytest.raises(UserError, match="was imported without a tokenizer"):
        export_hf(made, tmp_path / "out")


def test_a_table_that_deepspeed_saved_with_its_padding_loses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = joint(vocab_size=300)
    held = {name: p.detach() for name, p in model.named_parameters()}
    assert held["embeddings.word.weight"].shape[0] == 320
    state = ForeignState(
        folder=tmp_path,
        step=4,
        zero_stage=2,
        num_ranks=1,
        shapes={name: tuple(value.shape) for name, value in held.items()},
        fragments=lambda name, _: list(held[name].flatten().split(1000)),
    )
    monkeypatch.setattr(imports, "read_deepspeed", lambda _: state)
    with CheckpointReader(import_deepspeed(tmp_path, tmp_path / "made", config=config)) as reader:
        for name, value in stored_parameters(model).items():
            assert torch.equal(torch.from_numpy(reader.read_whole(name)), value), name


def test_another_model_than_the_config_s_is_named(
    foreign: tuple[Path, RunConfig], tmp_path: Path
) -> None:
    folder, config = foreign
    deeper = replace(config, model=replace(config.model, num_layers=3))
    with pytest.raises(UserError, match=r"lacks discriminator\.encoder\.layers\.2"):
        import_deepspeed(folder, tmp_path / "other", config=deeper)
    shallow = replace(config, model=replace(config.model, num_layers=1))
    with pytest.raises(UserError, match=r"holds discriminator\.encoder\.layers\.1.*is not there"):
        import_deepspeed(folder, tmp_path / "other", config=shallow)
    state = read_deepspeed(folder)
    assert state.step == 0
    for path in (folder / "global_step0_universal").glob("*_model_states.pt"):
        model = torch.load(path, weights_only=True)
        model["param_shapes"] = [{"bert.weight": torch.Size([2])}]
        torch.save(model, path)
    with pytest.raises(UserError, match="it is no JointElectra"):
        import_deepspeed(folder, tmp_path / "other")


def test_an_altered_tokenizer_is_not_exported(tokenizer: Path, tmp_path: Path) -> None:
    model, _ = joint()
    hub.export(model, tokenizer, tmp_path / "hf")
    made = import_hf(tmp_path / "hf", tmp_path / "made")
    changed = json.loads((made / "tokenizer.json").read_text())
    (made / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="is not the one that was imported"):
        export_hf(made, tmp_path / "out")


@pytest.mark.parametrize(
    "words", [["--generator", "x"], ["--recipe", "tiny", "--config", "x.toml"]]
)
def test_words_that_do_not_go_together(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["checkpoint", "import", "deepspeed", str(tmp_path), "--out", str(tmp_path / "made")]
    assert main([*command, *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
