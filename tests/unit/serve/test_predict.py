import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ElectraConfig, ElectraModel

from electra_dist.cli import main
from electra_dist.errors import UserError
from electra_dist.finetune.folder import HeadConfig, save_classifier
from electra_dist.finetune.heads import HEADS, ElectraClassifier, HeadName
from electra_dist.serve.predict import Prediction, load_classifier, predict_file

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "the"]


def make_model(
    folder: Path, *, head: HeadName = "google", is_pair: bool = False, is_regression: bool = False
) -> Path:
    """A classifier with random weights, as `finetune` leaves it."""
    source = folder / "source"
    source.mkdir(parents=True)
    vocabulary = {piece: index for index, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(source / "tokenizer.json"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        shape = ElectraConfig(
            vocab_size=len(PIECES),
            embedding_size=16,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            initializer_range=0.3,
        )
        config = HeadConfig(
            head=head,
            task="custom",
            kind="regression" if is_regression else "classification",
            labels=() if is_regression else ("no", "yes"),
            target_range=(100.0, 200.0) if is_regression else None,
            metrics=("mse",) if is_regression else ("accuracy",),
            max_length=12,
            text="first",
            text_b="second" if is_pair else None,
            label="label",
            columns_without_header=() if is_pair else ("first", "label"),
        )
        model = ElectraClassifier(ElectraModel(shape), HEADS[head](shape, config.num_outputs))
    save_classifier(folder / "model", model, config, source)
    return folder / "model"


@pytest.mark.parametrize("head", ["google", "hf"])
def test_a_label_is_the_likeliest_of_its_probabilities(tmp_path: Path, head: HeadName) -> None:
    classifier = load_classifier(make_model(tmp_path, head=head))
    texts = ["good film", "bad", "the the the film bad", "", "good"]
    found = classifier.predict(texts)
    for each in found:
        assert each.probabilities is not None
        assert sum(each.probabilities.values()) == pytest.approx(1.0)
        assert each.label == max(each.probabilities, key=each.probabilities.__getitem__)
        assert each.value is None
    alone = [classifier.predict([text])[0].probabilities for text in texts]
    for each, probabilities in zip(found, alone, strict=True):
        assert each.probabilities == pytest.approx(probabilities, abs=1e-6)
    assert len({round(each["yes"], 4) for each in alone if each}) > 2
    assert classifier.predict([]) == []


def test_a_pair_depends_on_its_order(tmp_path: Path) -> None:
    classifier = load_classifier(make_model(tmp_path, is_pair=True))
    one, other = classifier.predict(["good film", "bad"], ["bad", "good film"])
    assert one.probabilities != pytest.approx(other.probabilities)
    with pytest.raises(UserError, match="trained on pairs of texts"):
        classifier.predict(["good"])
    with pytest.raises(UserError, match="2 first and 1 second"):
        classifier.predict(["good", "bad"], ["film"])


def test_a_value_is_in_the_units_of_the_training_file(tmp_path: Path) -> None:
    classifier = load_classifier(make_model(tmp_path, is_regression=True))
    with torch.no_grad():
        classifier.model.get_parameter("classifier.out_proj.weight").zero_()
        classifier.model.get_parameter("classifier.out_proj.bias").fill_(0.25)
    expected = Prediction(label=None, probabilities=None, value=125.0)
    assert classifier.predict(["good"]) == [expected]
    with pytest.raises(UserError, match="trained on single texts"):
        classifier.predict(["good"], ["film"])


def test_a_text_file_has_one_text_a_line(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("good film\n\nthe é\n", encoding="utf-8")
    rows = predict_file(model, source, out, batch_size=2)
    assert [row["text"] for row in rows] == ["good film", "", "the é"]
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == rows
    assert set(rows[0]) == {"text", "label", "probabilities"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.tsv", "first\nthe film\nbad\n"),
        ("in.tsv", "the film\t0\nbad\t1\n"),
        ("in.csv", "id,first\n1,the film\n2,bad\n"),
        ("in.jsonl", '{"first": "the film"}\n{"first": "bad"}\n'),
    ],
)
def test_tables_need_the_text_column_only(tmp_path: Path, name: str, content: str) -> None:
    model = make_model(tmp_path)
    (tmp_path / name).write_text(content)
    expected = load_classifier(model).predict(["the film", "bad"])
    rows = predict_file(model, tmp_path / name)
    assert [row["text"] for row in rows] == ["the film", "bad"]
    assert [row["label"] for row in rows] == [each.label for each in expected]
    assert [row["probabilities"] for row in rows] == [each.probabilities for each in expected]


def test_rows_of_pairs_and_of_a_regression(tmp_path: Path) -> None:
    model = make_model(tmp_path, is_pair=True, is_regression=True)
    (tmp_path / "in.tsv").write_text("second\tfirst\nfilm\tgood\n")
    (row,) = predict_file(model, tmp_path / "in.tsv")
    assert list(row) == ["text", "text_b", "value"]
    assert (row["text"], row["text_b"]) == ("good", "film")


def test_mistakes_name_the_file(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        predict_file(model, tmp_path / "none.txt")
    (tmp_path / "in.csv").write_text("text\ngood\n")
    with pytest.raises(UserError, match=r"in\.csv, line 1: there is no column 'first'"):
        predict_file(model, tmp_path / "in.csv")
    with pytest.raises(UserError, match=r"there is no head\.json"):
        predict_file(tmp_path, tmp_path / "in.csv")
    (tmp_path / "in.txt").write_text("good\n")
    with pytest.raises(UserError, match=r"out\.jsonl: cannot be written"):
        predict_file(model, tmp_path / "in.txt", tmp_path / "no" / "out.jsonl")


def test_without_out_the_rows_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path)
    (tmp_path / "in.txt").write_text("good film\nbad\n")
    rows = predict_file(model, tmp_path / "in.txt")
    capsys.readouterr()
    assert main(["predict", "--model", str(model), "--input", str(tmp_path / "in.txt")]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
