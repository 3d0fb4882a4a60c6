"""Runs with one to four faults drawn at random: all finish without a hand, equal to the calm run.

The test stands for the batch script: it starts the run again after exit code 75, and for nothing
else. Kills, stops, flipped bits and refused writes are the run's own (ELECTRA_DIST_FAULTS);
SIGTERM, torn files and a full disk come from outside.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from electra_dist.checkpoint.layout import list_checkpoints
from electra_dist.checkpoint.reshard import differences
from electra_dist.launch.records import newest_attempt
from electra_dist.train.audit import audit
from tests import made_up
from tests.chaos.test_kill import lines, start

pytestmark = pytest.mark.chaos

NUM_STEPS, NUM_RANKS, MAX_STARTS = 40, 2, 8
DECLARED = ("kill", "stop", "flip", "enospc")
FROM_OUTSIDE = ("term", "torn", "full")
ENDS_AN_ATTEMPT = ("kill", "stop", "term", "torn")
DISK_MB = 48
SECONDS = 400.0
# A rank that is stopped in the first steps of an attempt is given half an hour otherwise.
WATCH = ["--resilience.hang_floor_seconds", "4", "--resilience.hang_start_up_seconds", "20"]
WORDS = ["--max-restarts", "4", *WATCH]

STAGES = ["reference", "reference", "2", *["reference"] * 17, "0", "1", "2", "3", "3"]
IN_MAKE_TEST = (1, 2)
"""Seeds: one of plain PyTorch, one of DeepSpeed."""
RUNS = [
    pytest.param(seed, stage, marks=[pytest.mark.slow] if seed not in IN_MAKE_TEST else [])
    for seed, stage in enumerate(STAGES)
]


@dataclass(frozen=True)
class Drawn:
    """A fault of one attempt."""

    kind: str
    attempt: int
    step: int
    rank: int

    def declaration(self) -> str:
        """For ELECTRA_DIST_FAULTS."""
        words = f"{self.kind} rank={self.rank} step={self.step} attempt={self.attempt}"
        # Of the newest checkpoint, so it needs one; the others anywhere in a step.
        phase = {"flip": " phase=save", "enospc": ""}.get(self.kind, " phase=backward")
        return words + phase


def draw(seed: int) -> list[Drawn]:
    """One to four faults; those that end an attempt are each in one of its own."""
    drawn = random.Random(seed)
    faults: list[Drawn] = []
    attempt = 1
    for _ in range(drawn.randint(1, 4)):
        kind = drawn.choice(DECLARED + FROM_OUTSIDE)
        step, rank = drawn.randrange(10, NUM_STEPS - 3), drawn.randrange(NUM_RANKS)
        faults.append(Drawn(kind, attempt, step, rank))
        attempt += kind in ENDS_AN_ATTEMPT
    return faults


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made_up.corpus(tmp_path_factory.mktemp("corpus"), length=32))


@pytest.fixture(scope="module")
def calm_runs() -> dict[str, Path]:
    """By stage, each made when first asked for."""
    return {}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small tmpfs is mounted by root only")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    subprocess.run(command, check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def act(fault: Drawn, run: Path, trainer: subprocess.Popen[bytes]) -> None:
    """What comes from outside, once."""
    if fault.kind == "full":
        filler = run.parent / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass
        time.sleep(1.5)
        filler.unlink()
        return
    trainer.terminate()
    trainer.wait(timeout=SECONDS)
    if fault.kind == "torn" and list_checkpoints(run):
        newest = list_checkpoints(run)[-1].folder
        shard = sorted(newest.glob("shard_*.safetensors"))[fault.rank]
        os.truncate(shard, shard.stat().st_size * fault.step // NUM_STEPS)


def live(corpus: str, run: Path, stage: str, faults: list[Drawn]) -> list[int]:
    """The run to its end; exit codes of its starts."""
    declared = "; ".join(f.declaration() for f in faults if f.kind in DECLARED)
    outside = [f for f in faults if f.kind in FROM_OUTSIDE]
    codes: list[int] = []
    while not codes or codes[-1] == 75:
        assert len(codes) < MAX_STARTS
        more = {"ELECTRA_DIST_FAULTS": declared}
        trainer = start(corpus, run, stage, NUM_RANKS, more, WORDS)
        deadline = time.monotonic() + SECONDS
        while trainer.poll() is None:
            assert time.monotonic() < deadline, "the run does not end"
            step = max((line["step"] for line in lines(run)), default=0)
            due = [f for f in outside if f.attempt <= newest_attempt(run) and f.step <= step]
            for fault in due[:1]:
                outside.remove(fault)
                act(fault, run, trainer)
            time.sleep(0.05)
        codes.append(trainer.wait())
    return codes


@pytest.mark.parametrize(("seed", "stage"), RUNS)
def test_a_run_with_random_faults_ends_like_the_calm_one(
    seed: int,
    stage: str,
    corpus: str,
    calm_runs: dict[str, Path],
    disk: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if stage not in calm_runs:
        calm_runs[stage] = tmp_path_factory.mktemp("calm") / "run"
        assert start(corpus, calm_runs[stage], stage, NUM_RANKS).wait(timeout=SECONDS) == 0
    calm, run, faults = calm_runs[stage], disk / "run", draw(seed)
    codes = live(corpus, run, stage, faults)
    told = f"{stage}: {faults} gave {codes} in {newest_attempt(run)} attempts"
    print(told)
    assert codes[-1] == 0, told
    newest = [list_checkpoints(one)[-1].folder for one in (calm, run)]
    assert differences(*newest) == [], told
    assert lines(run) == lines(calm), told
    assert [line["step"] for line in lines(run)] == list(range(1, NUM_STEPS + 1))
    assert audit(run, []).problems == [], told
