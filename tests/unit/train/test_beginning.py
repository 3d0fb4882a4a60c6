"""What a run may begin from: mistakes are found before ranks meet, each is one sentence."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from electra_dist.checkpoint.made import made_state, write_checkpoint, zero_moments
from electra_dist.cli import main
from electra_dist.config import files
from electra_dist.config.schema import RunConfig
from electra_dist.data.corpora import Corpora
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.errors import UserError
from electra_dist.model import hub
from electra_dist.model.electra import JointElectra
from electra_dist.model.padding import stored_parameters
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.control import Control
from electra_dist.runtime.world import World
from electra_dist.train import export, fitting
from electra_dist.train.beginning import Beginning, Source, fill, open_source, still_wanted
from electra_dist.train.build import build_run
from tests import made_up

ALONE = World.from_environment({})


@dataclass(frozen=True)
class Place:
    """A corpus, a run on it that has saved at step 0, and a Hugging Face folder of its model."""

    corpora: Corpora
    config: RunConfig
    run: Path
    hf: Path

    @property
    def checkpoint(self) -> Path:
        return self.run / "checkpoints/step_00000000"

    def open(self, source: Path, config: RunConfig | None = None, **more: bool) -> object:
        beginning = Beginning(source=source, **more)
        return open_source(beginning, config or self.config, self.corpora)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("begun")
    corpus = made_up.corpus(folder, length=32)
    words = ["--data.corpus", str(corpus), "--data.sequence_length", "32", "--model.num_layers"]
    words += ["2", "--model.generator_num_layers", "2", "--engine.kind", "reference"]
    words += ["--metrics.no-tensorboard", "--seed", "8", "--engine.threads_per_rank", "1"]
    config = files.load(None, words, recipe="tiny")
    corpora = Corpora.open(config.data)
    config = replace(config, model=replace(config.model, vocab_size=corpora.first.vocab_size))
    run = build_run(config, folder / "run", {})
    run.save()
    assert run.store.wait()
    run.close()
    hub.export(JointElectra(config), corpora.first.tokenizer_path, folder / "hf")
    return Place(corpora, config, folder / "run", folder / "hf")


def model(config: RunConfig, **fields: int) -> RunConfig:
    return replace(config, model=replace(config.model, **fields))


def of_objective(config: RunConfig, name: str) -> RunConfig:
    return replace(config, objective=replace(config.objective, name=name))


MISTAKES: dict[str, Callable[[Place], object]] = {
    r"nowhere is neither a complete checkpoint": lambda p: p.open(p.run / "nowhere"),
    r"position.weight of shape \[512, 64\], this run's is \[1024, 64\]; set --model.max_pos": (
        lambda p: p.open(p.run, model(p.config, max_position_embeddings=1024))
    ),
    r"word.weight .*; build the corpus with the source's tokenizer": (
        lambda p: p.open(p.hf, model(p.config, vocab_size=999))
    ),
    r"lacks discriminator\.encoder\.layers\.2.*give the source's recipe": (
        lambda p: p.open(p.run, model(p.config, num_layers=3))
    ),
    r"holds discriminator\.encoder\.layers\.1": (
        lambda p: p.open(p.hf, model(p.config, num_layers=1))
    ),
    r"--init-from .*run is a model of objective electra, .*; set --objective.name electra, or": (
        lambda p: p.open(p.run, of_objective(p.config, "mlm"))
    ),
    r"--init-from .*hf is a model of objective electra, .*begin from a model of mlm": (
        lambda p: p.open(p.hf, of_objective(p.config, "mlm"))
    ),
    r"shape \[512, 64\], this run's is \[256, 64\]; set --model.max_pos": (
        lambda p: p.open(p.run, of_objective(model(p.config, max_position_embeddings=256), "mlm"))
    ),
    r"--keep-moments: .*hf is a Hugging Face folder": lambda p: p.open(p.hf, keep_moments=True),
    r"--resume-from: .*hf is a Hugging Face folder": lambda p: p.open(p.hf, is_fork=True),
    r"a fork may not change seed: 8 -> 9": (
        lambda p: p.open(p.checkpoint, replace(p.config, seed=9), is_fork=True)
    ),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_sentence_that_says_what_to_do(words: str, place: Place) -> None:
    with pytest.raises(UserError, match=words) as caught:
        MISTAKES[words](place)
    assert "\n" not in str(caught.value)


def test_disentangled_tables_begin_from_a_tied_model(place: Place) -> None:
    apart = replace(
        place.config, model=replace(place.config.model, embedding_sharing="gradient_disentangled")
    )
    source = place.open(place.hf, apart)
    assert isinstance(source, Source)
    # Differences stay as they start, at 0: the towers compute what the tied ones did.
    assert source.facts["fresh"] == ["discriminator.embeddings"]


def made(place: Place, out: Path) -> Path:
    shapes = stored_parameters(JointElectra(place.config))
    state = made_state(step=7, origin={"kind": "average"}, has_moments=False, config=None)
    pieces = (piece for name, p in shapes.items() for piece in zero_moments(name, p.numpy()))
    return write_checkpoint(out, {name: p.shape for name, p in shapes.items()}, pieces, state)


def test_an_average_gives_weights_and_neither_moments_nor_a_place_to_go_on(
    place: Place, tmp_path: Path
) -> None:
    average = made(place, tmp_path / "mean")
    place.open(average)
    with pytest.raises(UserError, match=r"holds none \(average\); leave --keep-moments out"):
        place.open(average, keep_moments=True)
    with pytest.raises(UserError, match=r"was averaged or imported.*begin anew with --init-from"):
        place.open(average, is_fork=True)
    shutil.copytree(place.checkpoint, tmp_path / "step_00000000")
    with pytest.raises(UserError, match="lies alone"):
        place.open(tmp_path / "step_00000000", is_fork=True)


def test_a_vocabulary_is_known_by_its_tokens_not_by_the_bytes_of_its_file(
    place: Place, tmp_path: Path
) -> None:
    shutil.copytree(place.hf, tmp_path / "hf")
    path = tmp_path / "hf/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    path.write_text(json.dumps(tokenizer))  # other bytes, the same tokens
    place.open(tmp_path / "hf")
    vocab = tokenizer["model"]["vocab"]
    one, other = list(vocab)[10:12]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="trained with another vocabulary than the corpus"):
        place.open(tmp_path / "hf")
    path.unlink()
    theirs = json.loads(place.corpora.first.tokenizer_path.read_text())["model"]["vocab"]
    lines = sorted(theirs.items(), key=lambda item: item[1])
    (tmp_path / "hf/vocab.txt").write_text("\n".join(token for token, _ in lines))
    place.open(tmp_path / "hf")


def test_a_line_of_a_vocabulary_ends_at_a_newline_only(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("[PAD]\n\u2028\n\x85\nend\n".encode())
    assert fitting._ids(path) == {"[PAD]": 0, "\u2028": 1, "\x85": 2, "end": 3}


def test_tasks_that_export_a_run_at_once_all_get_the_model(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_one, others = export.export_hf, []

    def export_while_another_does(checkpoint: Path, out: Path) -> Path:
        if not others:
            others.append(None)
            others.append(export.model_folder(place.run))
        return export_one(checkpoint, out)

    monkeypatch.setattr(export, "export_hf", export_while_another_does)
    folder = export.model_folder(place.run)
    assert others[1] == folder
    assert (folder / "config.json").is_file()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert export.model_folder(folder) == folder


def test_weights_of_a_hugging_face_folder_go_into_the_engine(place: Place) -> None:
    other = replace(place.config, seed=1)
    engine = ReferenceEngine(JointElectra(other), other, ALONE, torch.device("cpu"))
    control = Control(group=None, store=None, world=ALONE, timeout_seconds=1.0)
    source = place.open(place.hf, other)
    fill(engine, source, control)  # type: ignore[arg-type]
    wanted = stored_parameters(JointElectra(place.config))
    for name, kind, _, values in engine.local_fragments():
        if kind == "master":
            assert torch.equal(values, wanted[name].data.view(-1)), name
        else:
            assert not values.any()


def test_without_a_generator_the_seed_s_own_stays(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.hf, tmp_path / "hf", ignore=shutil.ignore_patterns("generator"))
    other = replace(place.config, seed=1)
    engine = ReferenceEngine(JointElectra(other), other, ALONE, torch.device("cpu"))
    control = Control(group=None, store=None, world=ALONE, timeout_seconds=1.0)
    source = place.open(tmp_path / "hf", other)
    assert source.facts["fresh"] == ["generator.encoder", "generator.head"]  # type: ignore[attr-defined]
    fill(engine, source, control)  # type: ignore[arg-type]
    theirs, own = (stored_parameters(JointElectra(c)) for c in (place.config, other))
    for name, kind, _, values in engine.local_fragments():
        if kind == "master":
            wanted = own if name.startswith("generator.") else theirs
            assert torch.equal(values, wanted[name].data.view(-1)), name


def test_a_run_that_has_begun_ignores_its_source_and_refuses_another(
    place: Place, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    begun = Beginning(source=tmp_path / "source")
    assert still_wanted(begun, run) == begun
    assert still_wanted(None, place.run) is None
    with pytest.raises(UserError, match="holds a run that did not begin from any source; leave"):
        still_wanted(begun, place.run)
    shutil.copytree(place.run, run)
    attempt = Attempt.claim(run)
    line = {"event": "init", "source": str((tmp_path / "source").resolve())}
    attempt.append_jsonl(run / "events.jsonl", line)
    assert still_wanted(begun, run) is None
    with pytest.raises(UserError, match=r"holds a run that began from .*source; leave the word"):
        still_wanted(Beginning(source=tmp_path / "other"), run)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--init-from", "a", "--resume-from", "b"], "give one of them, not both"),
        (["--keep-moments"], "--keep-moments goes with --init-from"),
        (["--resume-from", "nowhere"], "nowhere is neither a complete checkpoint"),
    ],
)
def test_words_that_do_not_go_together(
    words: list[str],
    sentence: str,
    place: Place,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "config.json"
    config.write_text(files.to_json(place.config))
    assert main(["pretrain", str(config), "--out", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sentence in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("word", ["--init-from", "--resume-from"])
def test_a_source_that_is_not_there_is_named_first(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "--out", str(tmp_path / "run"), word, str(tmp_path / "gone")]) == 2
    assert f"{word} {tmp_path}/gone does not exist" in capsys.readouterr().err


def test_a_resume_on_another_corpus_is_refused_before_it_counts_as_an_attempt(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, corpus = tmp_path / "run", tmp_path / "corpus"
    shutil.copytree(place.run, run)
    shutil.copytree(place.corpora.first.folder, corpus)
    packing = next(corpus.glob("pack_*/manifest.json"))
    packing.write_text(json.dumps({**json.loads(packing.read_text()), "fingerprint": "0" * 16}))
    words = ["pretrain", "--out", str(run), "--schedule.stop_step", "1", "--data.corpus"]
    assert main([*words, str(corpus)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "trained on another corpus" in error
    assert [folder.name for folder in (run / "attempts").iterdir()] == ["0001"]
