from dataclasses import replace
from pathlib import Path

import pytest

from electra_dist.config import changes, files
from electra_dist.config.schema import EngineConfig, RunConfig
from electra_dist.errors import UserError
from electra_dist.resilience.resume import check_state, resumed_config

CONFIG = files.load(None, ["--data.corpus", "corpus"], recipe="tiny")


def settled(run: Path, config: RunConfig) -> Path:
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(files.to_json(config))
    return run


def with_threads(config: RunConfig, threads: int | None) -> RunConfig:
    return replace(config, engine=replace(config.engine, threads_per_rank=threads))


def test_a_new_run_has_the_config_that_was_given(tmp_path: Path) -> None:
    assert resumed_config(CONFIG, tmp_path / "new") == CONFIG


def test_the_same_config_goes_on(tmp_path: Path) -> None:
    assert resumed_config(CONFIG, settled(tmp_path, CONFIG)) == CONFIG


def test_threads_stay_as_the_run_has_settled_them_unless_another_number_is_given(
    tmp_path: Path,
) -> None:
    run = settled(tmp_path, with_threads(CONFIG, 3))
    assert resumed_config(CONFIG, run).engine.threads_per_rank == 3
    assert resumed_config(with_threads(CONFIG, 2), run).engine.threads_per_rank == 2


def test_the_corpus_has_settled_the_vocabulary(tmp_path: Path) -> None:
    """Submitted again from a login node, a config that leaves it to the corpus goes on."""
    run = settled(tmp_path, replace(CONFIG, model=replace(CONFIG.model, vocab_size=300)))
    assert resumed_config(CONFIG, run).model.vocab_size == 300
    other = replace(CONFIG, model=replace(CONFIG.model, vocab_size=400))
    with pytest.raises(UserError, match="vocab_size: 300 -> 400"):
        resumed_config(other, run)


def test_what_decides_no_number_may_change(tmp_path: Path) -> None:
    run = settled(tmp_path, CONFIG)
    words = ["--engine.zero-stage=3", "--checkpoint.every-steps=7", "--schedule.stop-step=50"]
    words += ["--data.corpus=moved/corpus", "--metrics.log-every=1", "--engine.precision=bf16"]
    changed = files.load(run / "config.json", words)
    assert resumed_config(changed, run) == changed
    assert changes.fingerprint(changed) == changes.fingerprint(CONFIG)


def test_what_decides_numbers_is_refused_and_each_difference_named(tmp_path: Path) -> None:
    run = settled(tmp_path, CONFIG)
    changed = replace(
        files.load(run / "config.json", ["--seed=1", "--batch.micro-batch-size=4"]),
        engine=EngineConfig(kind="reference"),
    )
    with pytest.raises(UserError) as caught:
        resumed_config(changed, run)
    message = str(caught.value)
    assert str(run) in message
    assert "(seed: 0 -> 1; batch.micro_batch_size: 8 -> 4)" in message
    assert "another --out folder" in message
    assert "engine" not in message  # that one may change


def test_a_run_folder_with_a_damaged_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read as a config"):
        resumed_config(CONFIG, tmp_path)


def test_a_checkpoint_must_be_of_this_config_and_this_corpus() -> None:
    state = {"config_fingerprint": "aaa", "corpus_fingerprint": "bbb"}
    check_state(state, "aaa", "bbb")
    with pytest.raises(
        UserError, match=r"another config \(fingerprint aaa, now ccc\).*config\.json"
    ):
        check_state(state, "ccc", "bbb")
    with pytest.raises(
        UserError, match=r"another corpus.*fingerprint bbb, now ddd\); point data\."
    ):
        check_state(state, "aaa", "ddd")
