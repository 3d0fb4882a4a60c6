"""What submitit is told, and its protocol with the real LocalExecutor and ranks that are none."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import submitit

from electra_dist.cli import main
from electra_dist.config.cluster import ClusterConfig, read_cluster
from electra_dist.config.variables import RANK_COMMAND
from electra_dist.errors import UserError
from electra_dist.launch.records import read_lines
from electra_dist.launch.slurm import Job
from electra_dist.launch.submitit import MAX_TIMEOUTS, submission_text
from electra_dist.launch.submitit_job import Pretraining

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).with_name("golden")
JOB = Job(
    run=Path("/runs/my run"),
    words=("/configs/a.toml", "--optim.learning_rate", "2e-4"),
    num_nodes=2,
    python="/venv/bin/python",
)


@pytest.mark.parametrize("name", ["cpu_site", "gpu_site", "node_site"])
def test_golden_scripts(name: str) -> None:
    cluster = read_cluster(ROOT / "slurm" / "clusters" / f"{name}.toml")
    assert submission_text(JOB, cluster) == (GOLDEN / f"{name}.submitit").read_text()


def test_what_submitit_can_not_be_told() -> None:
    with pytest.raises(UserError, match=r"-C a.*write it as --name=value"):
        submission_text(JOB, ClusterConfig(sbatch=("-C a",)))
    with pytest.raises(UserError, match=r"--time=5.*submitit decides itself"):
        submission_text(JOB, ClusterConfig(sbatch=("--time=5",)))
    with pytest.raises(UserError, match="--time UNLIMITED: submitit needs a limit"):
        submission_text(JOB, ClusterConfig(time="UNLIMITED"))
    job = Job(run=Path("/runs/50%"), words=(), num_nodes=1, python="p")
    with pytest.raises(UserError, match=r"can't have a %"):
        submission_text(job, ClusterConfig())


def test_the_pickle_holds_a_few_words() -> None:
    """By reference to the class: no code, no state of a run."""
    data = cloudpickle.dumps(Pretraining(["a.toml", "--seed", "3"], "/runs/a"))
    assert len(data) < 300
    assert b"electra_dist.launch.submitit_job" in data


def test_the_launcher_is_short_and_executable() -> None:
    script = ROOT / "launchers" / "submitit_pretrain.py"
    assert os.access(script, os.X_OK)
    assert len(script.read_text().splitlines()) < 40


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "submitit", "--recipe", "tiny", "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*words, "--cluster", "local"]) == 2
    assert "--cluster local is one node" in capsys.readouterr().err
    assert main([*words, "--cluster", str(ROOT / "slurm/clusters/cpu_site.toml")]) == 0
    assert "-m submitit.core._submit" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------- on this machine

RANK = """
import json, os, signal, sys, time
from pathlib import Path
run = Path(sys.argv[sys.argv.index("--out") + 1])
rank = os.environ["RANK"]
number = len(list(run.glob("attempts/*"))) + 1 if rank == "0" else 0
def leave(reason, code):
    if rank == "0":
        value = {"reason": reason, "exit_code": code, "step": 1, "checkpoint": None}
        (run / "attempts" / f"{number:04d}" / "exit.json").write_text(json.dumps(value))
    os._exit(code)
for name in ("SIGUSR1", "SIGTERM"):
    signal.signal(getattr(signal, name), lambda *_: leave("stopped", 75))
if rank == "0":
    (run / "attempts" / f"{number:04d}").mkdir(parents=True)
    (run / "attempts" / f"{number:04d}" / "parent").write_text(str(os.getppid()))
what = os.environ["WHAT"].split()[max(0, number - 1)] if rank == "0" else "stop"
if what == "wait":
    time.sleep(60)
leave(*{"finish": ("finished", 0), "stop": ("stopped", 75), "fail": ("failed", 1)}[what])
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Starts a job whose rank does, one attempt after the other, what it is told."""
    rank = tmp_path / "rank.py"
    rank.write_text(RANK)
    monkeypatch.setenv(RANK_COMMAND, shlex.join([sys.executable, "-IS", str(rank)]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "run").mkdir()
    executor = submitit.LocalExecutor(tmp_path / "run" / "submitit", max_num_timeout=MAX_TIMEOUTS)
    jobs: list[Any] = []

    def started(what: str) -> Any:
        monkeypatch.setenv("WHAT", what)
        jobs.append(executor.submit(Pretraining(["c.toml"], tmp_path / "run", max_fruitless=2)))
        return jobs[-1]

    yield started
    for job in jobs:
        assert job._process.wait(60) == 0


def ends(run: Path, number: int) -> list[dict[str, Any]]:
    """The lines of requeue.jsonl, once there are so many and the last one leaves."""
    deadline = time.monotonic() + 60
    while True:
        lines = read_lines(run / "requeue.jsonl")
        if len(lines) >= number and lines[-1]["action"] == "leave":
            return lines
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.05)
    return path.read_text()


def test_usr2_has_the_rank_save_and_the_job_requeued(
    start: Callable[[str], Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = start("wait finish")
    os.kill(int(wait_for(run / "attempts" / "0001" / "parent")), signal.SIGUSR2)
    first, last = ends(run, 2)
    assert (first["action"], first["signals"], first["reason"]) == ("requeue", ["USR1"], "stopped")
    assert (last["action"], last["why"]) == ("leave", "finished")
    assert {line["job"] for line in (first, last)} == {job.job_id}
    assert [line["restart_count"] for line in (first, last)] == [0, 1]
    assert job.result() == "finished"


def test_ranks_that_leave_by_themselves_go_on_until_there_is_no_progress(
    start: Callable[[str], Any], tmp_path: Path
) -> None:
    """By their own clock, before any signal: the same door."""
    job = start("stop stop stop stop stop")
    lines = ends(tmp_path / "run", 2)
    assert [line["action"] for line in lines] == ["requeue", "leave"]
    assert "no progress: 2 jobs in a row" in lines[-1]["why"]
    assert "no progress" in str(job.exception())


@pytest.mark.slow
@pytest.mark.parametrize(("what", "sent"), [("fail", None), ("wait", signal.SIGTERM)])
def test_a_crash_or_a_word_to_end_is_the_end(
    start: Callable[[str], Any], tmp_path: Path, what: str, sent: int | None
) -> None:
    run = tmp_path / "run"
    job = start(what)
    if sent is not None:
        os.kill(int(wait_for(run / "attempts" / "0001" / "parent")), sent)
    (line,) = ends(run, 1)
    assert line["signals"] == (["TERM"] if sent else [])
    assert line["why"] in str(job.exception())
    assert len(list(run.glob("attempts/*"))) == 1
