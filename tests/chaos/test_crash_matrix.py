"""Every I/O call of a save, on each of two ranks, as the one at which things go wrong."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from electra_dist.checkpoint.layout import list_checkpoints
from electra_dist.checkpoint.reshard import differences
from tests import made_up
from tests.chaos.test_kill import lines, start

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).parents[2]
FAULTS = ("kill", "torn", "short", "full", "eio", "read-only")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """io_faults.c as a library that a process under test loads before libc."""
    library = tmp_path_factory.mktemp("shim") / "io_faults.so"
    source = Path(__file__).with_name("io_faults.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is to be had: faults are put in before the file system, and the 4,000
    fsyncs of the whole matrix take minutes on a busy disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def table(points: list[dict[str, Any]]) -> str:
    """A line a point: rank, number, call, and which checkpoint was found after each fault."""
    lines = [f"{'rank':>4} {'call':>4}  {'':45}" + "".join(f"{fault:>10}" for fault in FAULTS)]
    for point in points:
        found = "".join(f"{point['outcomes'].get(fault, '-'):>10}" for fault in FAULTS)
        call = re.sub(r"\.\d+\.tmp$", ".tmp", point["call"])  # without the process id
        lines.append(f"{point['rank']:>4} {point['number']:>4}  {call:45}{found}")
    return "\n".join(lines)


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_after_any_fault_a_fresh_process_finds_the_new_or_the_previous_checkpoint(
    every: int, shim: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.chaos.crash_matrix_ranks", str(folder), str(every)]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)
    outcomes = [found for point in points for found in point["outcomes"].values()]
    with capsys.disabled():
        print(f"\n{table(points)}\n{len(points)} points, {len(outcomes)} cases")
    assert {point["rank"] for point in points} == {0, 1}
    assert set(outcomes) == {"previous", "new"}, done.stderr
    if every == 1:
        # Rank 0's commit is one call: before it the previous checkpoint stands, from it on the new.
        kills = [p["outcomes"]["kill"] for p in points if p["rank"] == 0]
        assert kills == sorted(kills, reverse=True)
        assert set(kills) == {"previous", "new"}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A corpus, and a run of two ranks over it that nothing disturbs."""
    folder = tmp_path_factory.mktemp("calm")
    corpus = str(made_up.corpus(folder, length=32))
    assert start(corpus, folder / "run", "2", 2).wait(timeout=240) == 0
    return corpus, folder / "run"


def test_a_save_that_fails_beside_the_training_is_an_event_and_the_run_goes_on(
    shim: Path, tmp_path: Path
) -> None:
    corpus = str(made_up.corpus(tmp_path, length=32))
    run = tmp_path / "run"
    environ = {
        "LD_PRELOAD": str(shim),
        "IO_FAULTS": f"{run / 'checkpoints'} 30 5",  # one EIO, within the first save's shard
        "IO_FAULTS_RANK": "0",
    }
    assert start(corpus, run, "reference", 1, environ).wait(timeout=240) == 0
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    saves = [(e["event"], e["step"]) for e in events if e["event"].startswith("save")]
    assert saves == [("save_failed", 8), *(("save", step) for step in (16, 24, 32, 40))]
    assert [info.step for info in list_checkpoints(run)] == [24, 32, 40]
    log = (run / "attempts/0001/rank_00000.log").read_text()
    assert "a checkpoint could not be saved" in log


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_real_run_that_is_killed_at_a_drawn_call_ends_like_the_calm_one(
    seed: int, shim: Path, calm: tuple[str, Path], tmp_path: Path
) -> None:
    corpus, calm_run = calm
    run = tmp_path / "run"
    # One of the first 400 calls below checkpoints/ of one of the ranks: two saves or more.
    draw = random.Random(seed)
    rank, at = draw.randrange(2), draw.randrange(1, 400)
    environ = {
        "LD_PRELOAD": str(shim),
        "IO_FAULTS": f"{run / 'checkpoints'} {at} 1",
        "IO_FAULTS_RANK": str(rank),
    }
    assert start(corpus, run, "2", 2, environ).wait(timeout=240) == 1, "nothing was killed"
    found = [info.step for info in list_checkpoints(run)]
    print(f"rank {rank} was killed at call {at}; found complete: {found}")
    assert start(corpus, run, "2", 2).wait(timeout=240) == 0
    newest = [list_checkpoints(one)[-1].folder for one in (calm_run, run)]
    assert differences(*newest) == []
    assert lines(run) == lines(calm_run)
