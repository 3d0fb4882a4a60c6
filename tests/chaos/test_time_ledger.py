"""The ledger of time against the truth: known sleeps, known kills, on two real ranks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from electra_dist.launch.goodput import read_attempts, split
from electra_dist.launch.records import read_lines
from electra_dist.launch.restarts import Limits
from electra_dist.launch.supervisor import LocalLauncher, supervise
from tests import made_up
from tests.small_run import words

pytestmark = pytest.mark.chaos
HEARTBEAT_SECONDS = 1.0
"""Between two lines of times.jsonl, as the driver sets it."""


@pytest.mark.parametrize(
    ("victim", "fate"),
    [
        (0, "SIGKILL"),
        pytest.param(1, "SIGKILL", marks=pytest.mark.slow),
        pytest.param(1, "SIGSTOP", marks=pytest.mark.slow),
        pytest.param(0, "SIGSTOP", marks=pytest.mark.slow),
    ],
)
def test_every_part_is_found_within_a_hundredth_or_a_heartbeat(
    victim: int, fate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank ends or hangs after step 22, six after a save; restarted, the run goes to step 40."""
    run, truth_path = tmp_path / "run", tmp_path / "truth.jsonl"
    driver = Path(__file__).with_name("time_ledger_ranks.py")
    corpus = made_up.corpus(tmp_path / "corpus", length=32)
    pretrain = ["pretrain", "--out", str(run), *words(corpus, steps=40, save_every=8)]
    pretrain += ["--engine.timeout_seconds", "12" if fate == "SIGSTOP" else "120"]
    command = [sys.executable, str(driver), str(truth_path), "--", *pretrain]
    monkeypatch.setenv("VICTIM", str(victim))
    monkeypatch.setenv("FATE", fate)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launcher = LocalLauncher(2, os.environ, run)
    assert supervise(launcher, run, Limits(max_restarts=1), command) == 0

    lines = [record["step"] for record in read_lines(run / "metrics.jsonl")]
    assert lines == list(range(1, 41))
    found = split(read_attempts(run))
    assert found is not None
    truth = the_truth(read_lines(truth_path), float((tmp_path / "killed").read_text()), run)
    tolerance = max(0.01 * found.wall_seconds, HEARTBEAT_SECONDS)
    print(json.dumps({"wall": found.wall_seconds, "found": found.seconds, "truth": truth}))
    for part, seconds in truth.items():
        assert found.seconds[part] == pytest.approx(seconds, abs=tolerance), part
    assert sum(found.seconds.values()) == pytest.approx(found.wall_seconds)
    assert abs(found.seconds["other"]) < tolerance


def the_truth(records: list[dict[str, Any]], killed: float, run: Path) -> dict[str, float]:
    """Sums of the driver's stop-watches; what came after the save of step 16 in life 1 was lost."""
    launches = [r["launched"] for r in records if r["kind"] == "launched"]
    assert len(launches) == 2
    parts = dict.fromkeys(("data_wait", "step", "save", "evaluation"), 0.0)
    lost, step = 0.0, 0
    for record in records:
        if record["kind"] == "stepped":
            step = record["step"]
        is_first_life = record["time"] < launches[1]
        if record["kind"] in parts:
            # `step` counts up when the step's own seconds are noted: 16 is the save's own step.
            is_lost = is_first_life and step >= 16 and not (record["kind"] == "save" and step == 16)
            if is_lost:
                lost += record["seconds"]
            else:
                parts[record["kind"]] += record["seconds"]
    first_data = [r for r in records if r["kind"] == "data_wait"]
    begins = [r["time"] - r["seconds"] for r in first_data]
    start_up = [min(b for b in begins if b > launched) - launched for launched in launches]
    (gone, *_) = [r["ended"] for r in read_lines(run / "supervisor.jsonl")]
    return {
        **parts,
        "redone": lost,
        "start_up": sum(start_up),
        "hang": gone - killed,
        "stopped": launches[1] - gone,
    }
