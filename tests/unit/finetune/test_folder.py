import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ElectraForPreTraining, ElectraForSequenceClassification, ElectraModel

from electra_dist.errors import UserError
from electra_dist.finetune.encoding import TextEncoder
from electra_dist.finetune.folder import HeadConfig, load_body, load_saved, save_classifier
from electra_dist.finetune.heads import HEADS, ElectraClassifier, HeadName, run

TEXTS = ["good film", "bad", "the plot the cast the song", "one two three"]


def head_config(head: HeadName, labels: tuple[str, ...] = ("no", "yes", "é")) -> HeadConfig:
    return HeadConfig(
        head=head,
        task="custom",
        kind="classification" if labels else "regression",
        labels=labels,
        target_range=None if labels else (1.0, 5.0),
        metrics=("accuracy",),
        max_length=16,
        text="text",
        text_b=None,
        label="label",
        columns_without_header=(),
    )


def classifier(pretrained: Path, config: HeadConfig) -> ElectraClassifier:
    body = load_body(pretrained)
    return ElectraClassifier(body, HEADS[config.head](body.config, config.num_outputs))


def test_the_body_is_the_pretrained_encoder_with_or_without_a_prefix(
    pretrained: Path, tmp_path: Path
) -> None:
    bare = ElectraForPreTraining.from_pretrained(pretrained, local_files_only=True).electra
    bare.save_pretrained(tmp_path / "bare")
    ids = torch.arange(5, 15).reshape(2, 5)
    for folder in (pretrained, tmp_path / "bare"):
        body = load_body(folder).eval()
        assert isinstance(body, ElectraModel)
        with torch.no_grad():
            found, expected = body(ids).last_hidden_state, bare.eval()(ids).last_hidden_state
        assert torch.equal(found, expected)


@pytest.mark.parametrize("labels", [("no", "yes", "é"), ()], ids=["classes", "regression"])
def test_the_hf_head_is_read_by_transformers_with_the_same_logits(
    pretrained: Path, tmp_path: Path, labels: tuple[str, ...]
) -> None:
    config = head_config("hf", labels)
    model = classifier(pretrained, config)
    save_classifier(tmp_path, model, config, pretrained)
    loaded: Any = ElectraForSequenceClassification.from_pretrained(
        tmp_path, local_files_only=True, output_loading_info=True
    )
    theirs, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.config.num_labels == max(1, len(labels))
    if labels:
        assert theirs.config.id2label == dict(enumerate(labels))
    encoder = TextEncoder(tmp_path, config.max_length)
    rows = encoder.rows(TEXTS)
    batch = encoder.collate(rows)
    with torch.no_grad():
        logits = theirs.eval()(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            token_type_ids=batch.token_type_ids,
        ).logits
    torch.testing.assert_close(run(model, encoder, rows, 8), logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("head", ["google", "hf"])
def test_a_saved_classifier_comes_back_equal(
    pretrained: Path, tmp_path: Path, head: HeadName
) -> None:
    config = head_config(head)
    model = classifier(pretrained, config)
    save_classifier(tmp_path, model, config, pretrained)
    again, config_again = load_saved(tmp_path)
    assert config_again == config
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not list(tmp_path.glob(".*.tmp"))
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_outputs_come_in_the_order_of_the_rows_for_every_batch_size(pretrained: Path) -> None:
    encoder = TextEncoder(pretrained, 16)
    model = classifier(pretrained, head_config("google"))
    rows = encoder.rows(TEXTS)
    expected = torch.cat([run(model, encoder, [row], 1) for row in rows])
    for batch_size in (1, 3, 4, 100):
        torch.testing.assert_close(run(model, encoder, rows, batch_size), expected)


def test_the_google_head_starts_glorot_with_zero_bias(pretrained: Path) -> None:
    body = load_body(pretrained)
    head = HEADS["google"](body.config, 300)
    weights = head.get_parameter("out_proj.weight")
    bound = (6 / (32 + 300)) ** 0.5
    assert 0.98 * bound < weights.abs().max().item() <= bound
    assert head.get_parameter("out_proj.bias").abs().max() == 0
    assert head.get_submodule("dropout").p == 0.1


def test_regression_answers_are_in_the_files_units() -> None:
    config = head_config("google", ())
    assert config.answers(torch.tensor([[0.0], [0.5], [1.25]])).tolist() == [1.0, 3.0, 6.0]


def test_a_missing_or_foreign_weight_is_named(pretrained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pretrained, folder)
    weights = load_file(folder / "model.safetensors")
    name = "electra.encoder.layer.1.output.dense.weight"
    kept = {key: value for key, value in weights.items() if key != name}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 weights are missing, encoder\.layer\.1\.output\.dense"):
        load_body(folder)
    save_file(weights | {name: torch.zeros(3, 3)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"does not fit its config\.json"):
        load_body(folder)
    (folder / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="cannot be read"):
        load_body(folder)


def test_folders_that_are_no_model_are_the_users_mistake(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        load_body(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="model_type is 'bert'"):
        load_body(tmp_path)
    with pytest.raises(UserError, match=r"there is no head\.json"):
        load_saved(pretrained)
    (tmp_path / "head.json").write_text(json.dumps({"head": "google"}))
    with pytest.raises(UserError, match="fine-tune again"):
        load_saved(tmp_path)
