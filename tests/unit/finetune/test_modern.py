"""Fine-tuning of what a `modern` run exports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ModernBertForSequenceClassification

from electra_dist.config.recipes import RECIPES
from electra_dist.finetune.bodies import make_classifier
from electra_dist.finetune.config import FinetuneConfig
from electra_dist.finetune.encoding import TextEncoder
from electra_dist.finetune.folder import load_body
from electra_dist.finetune.optim import layer_wise_groups
from electra_dist.finetune.train import finetune
from electra_dist.model import hub
from electra_dist.model.electra import JointElectra
from electra_dist.serve.predict import load_classifier


@pytest.fixture(scope="module")
def exported(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a joint module of 2 layers of 64 that has not learnt anything."""
    run = RECIPES["tiny"]()
    model = replace(
        run.model,
        backbone="modern",
        vocab_size=17,
        num_layers=2,
        hidden_size=64,
        embedding_size=32,
        generator_num_layers=1,
        local_attention_window=4,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    data = replace(run.data, sequence_length=32)
    folder = tmp_path_factory.mktemp("modern") / "out"
    joint = JointElectra(replace(run, model=model, data=data))
    hub.export(joint, pretrained / "tokenizer.json", folder)
    return folder


def config_of(model: Path, data: Path, out: Path, **changes: Any) -> FinetuneConfig:
    values: dict[str, Any] = {
        "model": model,
        "train": data / "train.tsv",
        "dev": data / "dev.tsv",
        "out": out,
        "task": "sst2",
        "epochs": 6,
        "batch_size": 16,
        "lr": 2e-3,
        "max_length": 16,
    }
    return FinetuneConfig(**{**values, **changes})


@pytest.mark.parametrize("head", ["google", "hf"])
def test_a_modern_encoder_learns_is_saved_and_answers(
    head: str, exported: Path, sentiment: Path, tmp_path: Path
) -> None:
    result = finetune(config_of(exported, sentiment, tmp_path / "out", head=head))
    assert result.best("dev")["accuracy"] > 0.9
    texts = ["the good film", "a bad plot", "song the bad cast"]
    classifier = load_classifier(tmp_path / "out")
    answers = classifier.predict(texts)
    assert [answer.label for answer in answers] == ["1", "0", "0"]
    architecture = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"]
    if head == "google":
        assert architecture == ["ModernBertModel"]
        return
    assert architecture == ["ModernBertForSequenceClassification"]
    theirs, info = ModernBertForSequenceClassification.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    encoder = TextEncoder(tmp_path / "out", max_length=16)
    batch = encoder.collate(encoder.rows(texts))
    with torch.no_grad():
        logits = theirs.eval()(batch.input_ids, batch.attention_mask).logits
    for answer, row in zip(answers, logits.softmax(-1).tolist(), strict=True):
        assert answer.probabilities is not None
        assert list(answer.probabilities.values()) == pytest.approx(row, abs=1e-5)


def test_pairs_need_no_token_types(exported: Path, tmp_path: Path) -> None:
    rows = ["first\tsecond\tlabel"] + [
        f"the {a}\ta {b}\t{int(a == b)}" for a in ("good", "bad") for b in ("good", "bad")
    ] * 4
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    pairs = {"task": None, "text": "first", "text_b": "second", "label": "label", "epochs": 1}
    finetune(config_of(exported, tmp_path, tmp_path / "out", **pairs))
    assert len(load_classifier(tmp_path / "out").predict(["the good"], ["a bad"])) == 1


@pytest.mark.parametrize("head", ["google", "hf"])
def test_each_parameter_once_with_the_rate_of_its_depth(head: Any, exported: Path) -> None:
    model = make_classifier(load_body(exported), head, 2)
    groups = layer_wise_groups(model, 1.0, 0.5, "fixed", 0.01)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(rates) == len(list(model.parameters()))
    prefixes = {
        "model.embeddings.": 0.125,
        "model.layers.0.": 0.25,
        "model.layers.1.": 0.5,
        "model.final_norm.": 0.5,
        "head.": 1.0,
        "classifier.": 1.0,
    }
    for name, parameter in model.named_parameters():
        rate = next(rate for start, rate in prefixes.items() if name.startswith(start))
        decay = 0.0 if parameter.dim() == 1 else 0.01
        assert rates[id(parameter)] == (rate, decay), name
