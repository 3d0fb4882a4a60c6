"""Pruning: what stays, what goes, and what a kill in the middle leaves."""

import json
import os
import shutil
from pathlib import Path

import pytest

from electra_dist.checkpoint.prune import carry_out, plan_pruning
from electra_dist.cli import main
from electra_dist.config import files
from electra_dist.errors import UserError
from electra_dist.runtime.attempt import Attempt
from tests.unit.checkpoint.fake_engine import DictEngine, a_store, damage, names, saved

STEPS = (100, 200, 300, 400, 500)
LOSSES = {105: 0.30, 200: 0.20, 300: 0.10, 350: 0.01, 400: 0.15}
"""350 is near no checkpoint: eval_every is 100, so 10 steps is near."""


@pytest.fixture
def full(run: Path) -> Path:
    attempt = Attempt.claim(run)
    for step in STEPS:
        assert saved(a_store(attempt, keep_last=9), DictEngine(step), step, {"step": step})
    config = files.load(None, ["--metrics.eval_every", "100"], recipe="tiny")
    (run / "config.json").write_text(files.to_json(config))
    lines = [{"step": 50, "loss": 1.0}]
    lines += [
        {"step": step, "eval": {"unigram_disc_loss": loss, "own_disc_auc": loss, "odd": 1}}
        for step, loss in LOSSES.items()
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    attempt.write_exit(reason="finished", step=500, checkpoint="step_00000500", exit_code=0)
    return run


def kept(run: Path, **wishes: object) -> list[int]:
    wishes = {"keep_last": 1, "keep_every": None, "keep_best": 0, "metric": None, **wishes}
    pruning = plan_pruning(run, **wishes)  # type: ignore[arg-type]
    assert not {*pruning.kept} & {*pruning.removed}
    assert len(pruning.kept) + len(pruning.removed) == len(STEPS)
    return sorted(int(folder.name.removeprefix("step_")) for folder in pruning.kept)


def test_what_is_asked_for_stays(full: Path) -> None:
    assert kept(full) == [500]
    assert kept(full, keep_last=3) == [300, 400, 500]
    assert kept(full, keep_last=9) == list(STEPS)
    assert kept(full, keep_every=200) == [200, 400, 500]
    assert kept(full, keep_best=1) == [300, 500]
    assert kept(full, keep_best=3) == [200, 300, 400, 500]
    assert kept(full, keep_best=9) == list(STEPS)  # 100 by the evaluation at 105; 500 is newest
    assert kept(full, keep_best=1, metric="own_disc_auc") == [100, 500]  # the highest


def test_the_newest_that_verifies_stays_whatever_is_asked(full: Path) -> None:
    damage(full, 500)
    damage(full, 400)
    assert kept(full) == [300, 500]
    for step in (100, 200, 300):
        damage(full, step)
    with pytest.raises(UserError, match=r"no checkpoint verifies .*step_00000500.*nothing was rem"):
        kept(full)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"keep_last": 0}, "--keep-last 0 must be at least 1"),
        ({"keep_every": 0}, "--keep-every 0 must be at least 1"),
        ({"keep_best": -1}, "--keep-best -1"),
        ({"keep_best": 1, "metric": "los"}, "--metric los is in no evaluation.*own_disc_auc"),
        ({"keep_best": 1, "metric": "odd"}, "--metric odd says not how good"),
    ],
)
def test_a_mistake_is_one_sentence(full: Path, wishes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        kept(full, **wishes)


def test_without_evaluations_there_is_no_best(full: Path) -> None:
    (full / "metrics.jsonl").unlink()
    assert kept(full) == [500]
    with pytest.raises(UserError, match="no held-out evaluation"):
        kept(full, keep_best=1)


def test_the_command_says_what_goes_and_how_much(
    full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["checkpoint", "prune", str(full), "--keep-last", "2", "--keep-best", "1"]
    before = names(full)
    size = sum(f.stat().st_size for f in (full / "checkpoints/step_00000100").iterdir())
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert names(full) == before
    assert "keep    step_00000300  unigram_disc_loss 0.1" in shown
    assert f"would remove 2 checkpoints, {2 * size:,} bytes" in shown
    assert main(words) == 0
    assert f"removed 2 checkpoints, {2 * size:,} bytes" in capsys.readouterr().out
    assert names(full) == ["step_00000300", "step_00000400", "step_00000500"]
    assert main(words) == 0
    assert "removed 0 checkpoints" in capsys.readouterr().out


def test_a_run_that_is_running_is_left_alone(
    full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Attempt.claim(full)
    words = ["checkpoint", "prune", str(full), "--keep-last", "1"]
    assert main(words) == 2
    assert "is running" in capsys.readouterr().err
    assert main([*words, "--dry-run"]) == 0
    assert len(names(full)) == 5


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", range(8))
def test_a_kill_at_any_moment_leaves_whole_checkpoints(
    full: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rename and each removal of a file in turn."""
    calls = iter(range(100))

    def killing(real: object) -> object:
        def wrapped(*args: object, **kwargs: object) -> object:
            if next(calls) == call:
                raise Killed
            return real(*args, **kwargs)  # type: ignore[operator]

        return wrapped

    pruning = plan_pruning(full, keep_last=1, keep_every=None, keep_best=0, metric=None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killing(os.rename))
        patch.setattr(os, "unlink", killing(os.unlink))
        with pytest.raises(Killed):
            carry_out(pruning, full)
    for path in (full / "checkpoints").iterdir():
        if ".tmp-" not in path.name:
            assert len(list(path.iterdir())) == 3
    # The next one goes on, and takes away what was left half-removed.
    carry_out(plan_pruning(full, keep_last=1, keep_every=None, keep_best=0, metric=None), full)
    assert names(full) == ["step_00000500"]


def test_what_the_run_itself_has_removed_meanwhile_is_passed_over(full: Path) -> None:
    pruning = plan_pruning(full, keep_last=1, keep_every=None, keep_best=0, metric=None)
    shutil.rmtree(full / "checkpoints/step_00000200")
    carry_out(pruning, full)
    assert names(full) == ["step_00000500"]
