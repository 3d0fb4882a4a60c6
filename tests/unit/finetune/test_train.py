import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from electra_dist.errors import UserError
from electra_dist.finetune.config import FinetuneConfig
from electra_dist.finetune.encoding import TextEncoder
from electra_dist.finetune.folder import load_body, load_saved
from electra_dist.finetune.heads import run
from electra_dist.finetune.results import print_result
from electra_dist.finetune.train import finetune


def sentiment_config(
    pretrained: Path, sentiment: Path, out: Path, **changes: Any
) -> FinetuneConfig:
    settings: dict[str, Any] = {
        "model": pretrained,
        "out": out,
        "train": sentiment / "train.tsv",
        "dev": sentiment / "dev.tsv",
        "task": "sst2",
        "epochs": 4,
        "batch_size": 8,
        "lr": 3e-3,
        "max_length": 16,
        "threads": 1,
    }
    return FinetuneConfig(**(settings | changes))


def test_it_learns_and_writes_what_it_found(
    pretrained: Path, sentiment: Path, tmp_path: Path
) -> None:
    config = sentiment_config(
        pretrained, sentiment, tmp_path, seeds=(3, 4), test=sentiment / "train.tsv"
    )
    before = torch.get_rng_state()
    result = finetune(config)
    assert torch.equal(torch.get_rng_state(), before)

    scores = {each.seed: each.scores["dev"]["accuracy"] for each in result.seeds}
    assert result.baseline["dev"]["accuracy"] < 0.75
    assert result.best("dev")["accuracy"] > 0.9
    assert result.mean("dev")["accuracy"] == pytest.approx(np.mean(list(scores.values())))
    assert result.standard_deviation("dev")["accuracy"] == pytest.approx(
        np.std(list(scores.values()), ddof=1)
    )

    written = json.loads((tmp_path / "results.json").read_text())
    assert written["finished"] is True
    assert written["best"]["test"] == result.best("test")
    assert [each["seed"] for each in written["seeds"]] == [3, 4]
    assert written["settings"]["num_train"] == 160

    screen = io.StringIO()
    print_result(result, Console(file=screen, width=120))
    assert f"{result.mean('dev')['accuracy']:.4f}" in screen.getvalue()
    assert f"{result.standard_deviation('dev')['accuracy']:.4f}" in screen.getvalue()
    one = replace(result, seeds=result.seeds[:1])
    print_result(one, Console(file=screen, width=120))
    dev = [line for line in screen.getvalue().splitlines() if "accuracy" in line][-2]
    assert dev.split("│")[4].strip() == "-"  # one seed says nothing of the spread


def test_the_model_of_the_best_seed_is_kept(
    pretrained: Path, sentiment: Path, tmp_path: Path
) -> None:
    changes = {"seeds": (0, 1, 2, 3), "epochs": 1, "lr": 3e-4}
    result = finetune(sentiment_config(pretrained, sentiment, tmp_path, **changes))
    scores = {each.seed: each.scores["dev"]["accuracy"] for each in result.seeds}
    assert min(scores.values()) < scores[result.best_seed] == max(scores.values())

    model, head = load_saved(tmp_path)
    lines = [line.split("\t") for line in (sentiment / "dev.tsv").read_text().splitlines()]
    encoder = TextEncoder(tmp_path, head.max_length)
    answers = head.answers(run(model, encoder, encoder.rows([text for text, _ in lines]), 8))
    truth = [head.labels.index(label) for _, label in lines]
    assert np.mean(answers == truth) == pytest.approx(max(scores.values()))


def test_the_untrained_encoder_gets_the_same_head(
    pretrained: Path, sentiment: Path, tmp_path: Path
) -> None:
    # One step, whose rate is 0: the weights stay where they started.
    changes = {"epochs": 1, "batch_size": 160}
    for name, is_untrained in (("pretrained", False), ("untrained", True)):
        finetune(
            sentiment_config(
                pretrained, sentiment, tmp_path / name, reinitialize=is_untrained, **changes
            )
        )
    first, second = (load_saved(tmp_path / name)[0] for name in ("pretrained", "untrained"))
    assert torch.equal(
        first.get_parameter("classifier.out_proj.weight"),
        second.get_parameter("classifier.out_proj.weight"),
    )
    name = "electra.encoder.layer.0.intermediate.dense.weight"
    assert not torch.equal(first.get_parameter(name), second.get_parameter(name))


def test_a_seed_gives_the_same_weights_and_another_does_not(
    pretrained: Path, sentiment: Path, tmp_path: Path
) -> None:
    def weights(name: str, seed: int, **changes: Any) -> bytes:
        config = sentiment_config(
            pretrained, sentiment, tmp_path / name, seeds=(seed,), epochs=1, **changes
        )
        finetune(config)
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = weights("first", 5)
    torch.rand(7)  # the caller's random state is no input
    assert weights("again", 5) == first
    assert weights("other", 6) != first
    assert weights("untrained", 5, reinitialize=True) != first
    assert weights("no_decay", 5, layer_decay=1.0) != first


def test_the_hf_head_learns_too(pretrained: Path, sentiment: Path, tmp_path: Path) -> None:
    result = finetune(sentiment_config(pretrained, sentiment, tmp_path, head="hf"))
    assert result.best("dev")["accuracy"] > 0.9


def test_dropout_is_on_in_training(pretrained: Path, sentiment: Path, tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    shutil.copytree(pretrained, calm)
    content = json.loads((calm / "config.json").read_text())
    content |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (calm / "config.json").write_text(json.dumps(content))
    for folder in (pretrained, calm):
        finetune(sentiment_config(folder, sentiment, tmp_path / f"out_{folder.name}", epochs=1))
    files = [path / "model.safetensors" for path in tmp_path.glob("out_*")]
    assert len({path.read_bytes() for path in files}) == 2


def test_pairs_and_regression(pretrained: Path, tmp_path: Path) -> None:
    numbers = ["one", "two", "three", "four"]
    lines = ["a\tb\tvalue"]
    for index in range(160):
        x, y = index % 4, (index // 4) % 4
        lines.append(f"the film {numbers[x]}\ta song {numbers[y]}\t{10 + 2.5 * (x + y)}")
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join(lines))
    result = finetune(
        FinetuneConfig(
            model=pretrained,
            out=tmp_path / "out",
            train=path,
            dev=path,
            text="a",
            text_b="b",
            label="value",
            epochs=20,
            batch_size=16,
            lr=1e-3,
            max_length=16,
            threads=1,
        )
    )
    assert result.kind == "regression"
    assert result.best("dev")["pearson"] > 0.9
    assert result.baseline["dev"]["pearson"] == 0.0
    assert result.best("dev")["mse"] < 0.5 * result.baseline["dev"]["mse"]
    _, head = load_saved(tmp_path / "out")
    assert head.target_range == (10.0, 25.0)


def test_the_first_step_has_rate_zero(pretrained: Path, sentiment: Path, tmp_path: Path) -> None:
    config = sentiment_config(pretrained, sentiment, tmp_path, epochs=1, batch_size=160)
    finetune(config)
    start, end = load_body(pretrained).state_dict(), load_body(tmp_path).state_dict()
    assert all(torch.equal(end[name], value) for name, value in start.items())


def test_a_rate_that_blows_up_says_so(pretrained: Path, sentiment: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pretrained, broken)
    weights = load_file(broken / "model.safetensors")
    weights["electra.embeddings_project.bias"][0] = float("nan")
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(UserError, match=r"the loss became nan in epoch 1 at lr 0\.003; lower --lr"):
        finetune(sentiment_config(broken, sentiment, tmp_path / "out"))


def test_an_out_folder_of_something_else_is_left_alone(
    pretrained: Path, sentiment: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="own folder"):
        finetune(sentiment_config(pretrained, sentiment, pretrained))
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds files of something else"):
        finetune(sentiment_config(pretrained, sentiment, tmp_path))
    with pytest.raises(UserError, match=r"thesis\.tex cannot be made"):
        finetune(sentiment_config(pretrained, sentiment, tmp_path / "thesis.tex"))


def test_a_finished_model_is_left_alone_and_an_unfinished_one_made_again(
    pretrained: Path, sentiment: Path, tmp_path: Path
) -> None:
    config = sentiment_config(pretrained, sentiment, tmp_path, epochs=1, batch_size=160)
    results = tmp_path / "results.json"
    results.write_text('{"accuracy": 0.9}')  # somebody else's
    with pytest.raises(UserError, match="holds files of something else"):
        finetune(config)
    results.write_text('{"finished": false, "settings": {}}')
    finetune(config)
    written = results.read_bytes()
    with pytest.raises(UserError, match="holds a finished model already; remove it or give"):
        finetune(config)
    assert results.read_bytes() == written


def test_a_model_that_does_not_fit_is_refused_before_training(
    pretrained: Path, sentiment: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="max_length 33 is over the 32 positions"):
        finetune(sentiment_config(pretrained, sentiment, tmp_path / "out", max_length=33))
    narrow = tmp_path / "narrow"
    shutil.copytree(pretrained, narrow)
    content = json.loads((narrow / "config.json").read_text()) | {"vocab_size": 9}
    (narrow / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="its tokenizer has 17 tokens and its embeddings 9"):
        finetune(sentiment_config(narrow, sentiment, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
