"""Whole runs of other objectives: schedules, evaluation, resume, proof from the ledger."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from electra_dist.checkpoint.reshard import differences
from electra_dist.config import files
from electra_dist.data.corpora import Corpora
from electra_dist.data.masking import num_selected
from electra_dist.data.stream import CorpusStream
from electra_dist.data.trace import trace
from electra_dist.resilience.guard import ExitReason
from electra_dist.runtime.files import read_json_lines
from electra_dist.train.audit import audit
from electra_dist.train.build import build_run
from electra_dist.train.export import export_hf
from electra_dist.train.loop import train
from tests import made_up, small_run

ANNEALED = {
    "objective.mask_prob_end": 0.4,
    "objective.mask_prob_anneal_steps": 4,
    "objective.mask_sampling": "google",
}
RUNS = {
    "annealed": ANNEALED
    | {
        "objective.temperature": 2.0,
        "objective.temperature_end": 0.5,
        "objective.temperature_anneal_steps": 4,
        "model.embedding_sharing": "gradient_disentangled",
    },
    "electric": {"objective.name": "electric"},
    "uniform": ANNEALED | {"objective.name": "uniform_generator"},
    "modern": {"model.backbone": "modern", "model.local_attention_window": 8},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.corpus(tmp_path_factory.mktemp("variants"), length=32)


def words(corpus: Path, knobs: dict[str, object], *more: str) -> list[str]:
    options = [word for name, value in knobs.items() for word in (f"--{name}", str(value))]
    plain = small_run.words(corpus, steps=6, save_every=3)[2:]
    narrow = ["--model.num_layers", "1", "--model.generator_num_layers", "1"]
    evaluation = ["--metrics.eval_every", "3", "--metrics.eval_num_samples", "4"]
    return [*plain, *narrow, *evaluation, *options, *more]


def run_to_the_end(folder: Path, options: list[str]) -> None:
    run = build_run(files.load(None, options, recipe="tiny"), folder, {})
    assert train(run) is ExitReason.FINISHED
    run.close()


@pytest.mark.parametrize("name", list(RUNS))
def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(
    name: str, corpus: Path, tmp_path: Path
) -> None:
    options = words(corpus, RUNS[name])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_to_the_end(whole, options)
    run_to_the_end(broken, [*options, "--schedule.stop_step", "3"])
    run_to_the_end(broken, options)
    last = "checkpoints/step_00000006"
    assert differences(whole / last, broken / last) == []
    # The ledger's checksums are those of batches made again, before and after the resume.
    found = audit(broken, [])
    assert found.problems == []
    assert found.checked == range(6)
    lines = [line for line in read_json_lines(whole / "metrics.jsonl") if "eval" in line]
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        panel = line["eval"]
        assert all(map(math.isfinite, panel.values()))
        assert 0 < panel["unigram_disc_auc"] < 1
        assert ("generator_loss" in panel) == (name != "uniform")
    exported = export_hf(whole / last, tmp_path / "hf")
    kind = "modernbert" if name == "modern" else "electra"
    assert json.loads((exported / "config.json").read_bytes())["model_type"] == kind
    assert (exported / "generator").exists() == (name in ("annealed", "modern"))


def test_masks_of_a_schedule_are_traced_and_are_those_of_the_position(corpus: Path) -> None:
    config = files.load(None, words(corpus, ANNEALED), recipe="tiny")
    corpora = Corpora.open(config.data)
    steps = list(trace(config, corpora, range(6), world_size=2))
    shares = [0.15 + 0.25 * min(1.0, step / 4) for step in range(6)]
    stream = CorpusStream(config, corpora)
    for record, share in zip(steps, shares, strict=True):
        for one in record["micro_batches"]:
            batch = stream.micro_batch(record["step"], one["micro_batch"], record["position"])
            counts = num_selected(batch.num_tokens_B, share, config.max_masked)
            assert [len(row) for row in one["masked_positions"]] == counts.tolist()
            assert batch.masked_positions_BN.shape[1] == int(0.405 * 32)
    # Skipped positions count: what stands at a position does not depend on what was left out.
    skipping = stream.micro_batch(2, 0, 16, skips=((0, 8),))
    same = stream.micro_batch(3, 0, 24)
    np.testing.assert_array_equal(skipping.masked_positions_BN, same.masked_positions_BN)
    stream.close()


def test_a_run_from_before_word_tables_were_padded_goes_on(corpus: Path, tmp_path: Path) -> None:
    """Its config.json knows nothing of padding, its checkpoint has the 300 rows of its corpus."""
    options = words(corpus, {})
    plain = ["--model.pad_vocab_to_multiple_of", "1", "--schedule.stop_step", "3"]
    run_to_the_end(tmp_path / "run", [*options, *plain])
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    assert config["model"].pop("pad_vocab_to_multiple_of") == 1
    path.write_text(json.dumps(config))
    run_to_the_end(tmp_path / "run", options)
    run_to_the_end(tmp_path / "whole", [*options, "--model.pad_vocab_to_multiple_of", "1"])
    losses = [
        [line["loss"] for line in read_json_lines(tmp_path / name / "metrics.jsonl")]
        for name in ("run", "whole")
    ]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
