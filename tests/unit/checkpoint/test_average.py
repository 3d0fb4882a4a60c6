"""Averages of checkpoints against the formula in float64."""

import json
from pathlib import Path

import numpy as np
import pytest

from electra_dist.checkpoint import average as averaging
from electra_dist.checkpoint import made
from electra_dist.checkpoint.average import average, sources_of
from electra_dist.checkpoint.layout import resolve
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.cli import main
from electra_dist.errors import UserError
from electra_dist.runtime.attempt import Attempt
from tests.unit.checkpoint.fake_engine import SHAPES, DictEngine, a_store, damage, saved

STEPS = (10, 20, 30, 40)


@pytest.fixture
def full(run: Path) -> Path:
    """Four checkpoints; the tensors of each follow from its step."""
    attempt = Attempt.claim(run)
    for step in STEPS:
        state = {"step": step, "config_fingerprint": "c", "corpus_fingerprint": "d"}
        assert saved(a_store(attempt, keep_last=9), DictEngine(step), step, state)
    return run


def oracle(steps: list[int], shares: list[float]) -> dict[str, np.ndarray]:
    engines = [DictEngine(step) for step in steps]
    return {
        name: sum(
            share * engine.tensors[name, "master"].numpy().astype(np.float64)
            for engine, share in zip(engines, shares, strict=True)
        )
        for name in SHAPES
    }


@pytest.mark.parametrize("decay", [None, 0.5, 0.9])
@pytest.mark.parametrize("last", [None, 2, 3])
@pytest.mark.parametrize("chunk", [4, 1 << 22])
def test_weights_are_the_float64_average_rounded_once(
    full: Path, decay: float | None, last: int | None, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averaging, "_CHUNK", chunk)
    monkeypatch.setattr(made, "SHARD_BYTES", 100)  # several shards
    out = average(sources_of([full], last), full.parent / "mean", decay)
    steps = list(STEPS[-(last or 4) :])
    shares = [1 / len(steps)] * len(steps)
    if decay is not None:
        shares = [1.0]
        for _ in steps[1:]:
            shares = [decay * share for share in shares] + [1 - decay]
    expected = oracle(steps, shares)
    with CheckpointReader(out) as reader:
        assert len(reader.manifest.shards) > 1
        reader.verify()
        for name, wanted in expected.items():
            found = reader.read_whole(name)
            assert found.shape == SHAPES[name]
            # Half a unit in the last place of float32, and what float64 rounds.
            assert np.abs(found - wanted).max() <= 0.5001 * np.spacing(
                np.abs(wanted).max(), dtype="f4"
            )
            assert not reader.read_whole(name, "exp_avg").any()
            assert not reader.read_whole(name, "exp_avg_sq").any()


def test_an_average_says_what_it_is_of(full: Path) -> None:
    out = average(sources_of([full], 3), full.parent / "mean", 0.75)
    state = json.loads((out / "state.json").read_text())
    assert (state["step"], state["moments"]) == (40, "zero")
    assert "position" not in state
    origin = state["origin"]
    assert (origin["kind"], origin["ema_decay"]) == ("average", 0.75)
    assert [one["step"] for one in origin["sources"]] == [20, 30, 40]
    assert sum(one["share"] for one in origin["sources"]) == pytest.approx(1.0)
    assert state["corpus_fingerprint"] == "d"
    assert resolve(out).step == 40


def test_the_average_of_equal_checkpoints_is_the_checkpoint(
    full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = full / "checkpoints/step_00000030"
    words = ["checkpoint", "average", *[str(one)] * 3, "--out", str(full.parent / "same")]
    assert main(words) == 0
    assert "average of steps 30, 30, 30" in capsys.readouterr().out
    assert main(["checkpoint", "verify", str(full.parent / "same")]) == 0
    capsys.readouterr()
    assert main(["checkpoint", "diff", str(one), str(full.parent / "same")]) == 1
    differing = capsys.readouterr().out
    assert "master" not in differing
    assert "scale/exp_avg" in differing


def test_a_damaged_or_impossible_average_is_one_sentence_and_leaves_nothing(full: Path) -> None:
    beside = full.parent / "mean"
    first, *_ = found = sources_of([full], None)
    for words, call in {
        "--last 5: .* holds 4 complete": lambda: sources_of([full], 5),
        "--last 0 must be at least 2": lambda: sources_of([full], 0),
        "--last -1 must be at least 2": lambda: sources_of([full], -1),
        "--last 2 goes with one run": lambda: sources_of([first.folder, full], 2),
        "one checkpoint .* has no average": lambda: sources_of([first.folder], None),
        "--ema 1 must lie between": lambda: average(found, beside, 1.0),
        "exists already": lambda: average(found, full),
        "lies among the checkpoints of a run": lambda: average(found, first.folder.parent / "x"),
    }.items():
        with pytest.raises(UserError, match=words):
            call()
    damage(full, 20)
    with pytest.raises(UserError, match=r"step_00000020.*damaged; average checkpoints that verify"):
        average(found, beside)
    assert sorted(path.name for path in full.parent.iterdir()) == ["run"]


def test_different_models_have_no_average(full: Path) -> None:
    other = full.parent / "other"
    shapes = {**SHAPES, "tower.bias": (6,)}
    engine = DictEngine(1, shapes)
    assert saved(a_store(Attempt.claim(other)), engine, 10, {"step": 10})
    with pytest.raises(UserError, match=r"tower\.bias has shape \[6\] and \[5\]"):
        average(sources_of([other, full], None), full.parent / "mean")
