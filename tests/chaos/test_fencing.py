"""An attempt that was stopped and wakes up after its successor has started writes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from electra_dist.launch.records import newest_attempt, read_lines
from tests import made_up
from tests.small_run import words

pytestmark = pytest.mark.chaos
SECONDS = 200.0


def start(corpus: Path, run: Path, steps: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "electra_dist", "pretrain", "--nproc", "2", "--out", str(run)]
    command += [*words(corpus, steps=100_000, save_every=8), "--schedule.stop_step", str(steps)]
    command.remove("--metrics.no-tensorboard")  # its points must be fenced too
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)


def checksums(run: Path, attempt: int) -> dict[str, str]:
    """Of all files, but for what the attempt may say in a folder of its own."""
    own = run / "attempts" / f"{attempt:04d}"
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file()
        and not (path.parent == own and (path.suffix == ".log" or path.name == "exit.json"))
    }


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + SECONDS
    while not any(line["step"] >= step for line in read_lines(run / "metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_attempt_that_wakes_up_after_its_successor_writes_nothing(tmp_path: Path) -> None:
    """A node that was cut off, its supervisor with it, while the job was requeued elsewhere."""
    run = tmp_path / "run"
    corpus = made_up.corpus(tmp_path / "corpus", length=32)
    cut_off = start(corpus, run, steps=100_000)
    processes: list[psutil.Process] = []
    try:
        wait_for_step(run, 12)
        processes = [psutil.Process(cut_off.pid), *psutil.Process(cut_off.pid).children()]
        assert len(processes) == 3
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        wait_until_stopped(processes)

        assert start(corpus, run, steps=40).wait(SECONDS) == 0
        assert newest_attempt(run) == 2
        before = checksums(run, attempt=1)
        for process in reversed(processes):
            process.send_signal(signal.SIGCONT)
        assert cut_off.wait(SECONDS) == 1
    finally:
        for process in processes:
            if process.is_running():
                process.kill()
        cut_off.kill()
        cut_off.wait()

    assert checksums(run, attempt=1) == before
    assert "supervisor.jsonl" in before
    ended = json.loads((run / "attempts" / "0001" / "exit.json").read_text())
    assert (ended["reason"], ended["exit_code"]) == ("superseded", 1)
    log = (run / "attempts" / "0001" / "rank_00000.log").read_text()
    assert "has been superseded by a later one" in log


def wait_until_stopped(processes: list[psutil.Process]) -> None:
    while any(process.status() != psutil.STATUS_STOPPED for process in processes):
        time.sleep(0.01)
