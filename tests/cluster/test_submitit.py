"""Runs that submitit submits: its tasks are the ranks, and its protocol brings them back."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from electra_dist.launch.records import read_lines
from tests.cluster.site import ROOT, Site, assert_same_weights, electra, exit_of, numbers

pytestmark = [pytest.mark.cluster, pytest.mark.needs_slurm]

SLOW = "slow rank=0 step=1:99 seconds=0.2"


def submitted(
    site: Site, run: Path, *words: object, time_limit: str = "60", lead: int = 30, **variables: str
) -> str:
    """`electra-dist submit submitit`, on 2 nodes; returns the job's id."""
    run.parent.mkdir(parents=True, exist_ok=True)
    cluster = run.parent / "here.toml"
    partition = variables.pop("partition", "main")
    cluster.write_text(f'partition = "{partition}"\nsignal_lead_seconds = {lead}\n')
    where = ["--out", run, "--cluster", cluster, "--nodes", "2", "--time", time_limit]
    # Virtual nodes have no names of their own in the DNS.
    environ = {**site.lab.environ, "MASTER_ADDR": "127.0.0.1", **variables}
    return electra("submit", "submitit", site.config, *where, *words, environ=environ).strip()


def words_of(site: Site, run: Path) -> str:
    logs = sorted((run / "submitit").glob("*_log.*"))
    return "\n".join(log.read_text()[-3000:] for log in logs) + site.lab.state()


def reach(site: Site, run: Path, step: int) -> None:
    site.lab.wait(lambda: site.step(run) >= step, 120.0, f"step {step}\n{words_of(site, run)}")


def finished(site: Site, job: str, run: Path, *, evaluates: bool = True) -> None:
    """COMPLETED, and the calm run's twin; an evaluation may have had no time before the limit."""
    states = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
    state = site.lab.wait_for(job, states, 600.0)["JobState"]
    assert state == "COMPLETED", words_of(site, run)
    assert_same_weights(run, site.calm(2))
    mine, calm = numbers(run), numbers(site.calm(2))
    if not evaluates:
        mine, calm = ([{**line, "eval": None} for line in lines] for lines in (mine, calm))
    assert mine == calm


def test_one_requeue(site: Site, tmp_path: Path) -> None:
    """USR2, as a time limit sends it; a folder's name that no shell may read."""
    run = tmp_path / "o'clock $(touch PWNED)" / "run"
    job = submitted(site, run, ELECTRA_DIST_FAULTS=SLOW)
    reach(site, run, 12)
    status = json.loads(electra("status", job, "--json", environ=site.lab.environ))
    assert (status["folder"], status["slurm"][0]["state"]) == (str(run), "RUNNING")
    site.lab.run("scancel", "--signal=USR2", job)
    finished(site, job, run)
    first, last = read_lines(run / "requeue.jsonl")
    assert (first["action"], first["signals"], first["reason"]) == ("requeue", ["USR1"], "stopped")
    assert (last["action"], last["why"]) == ("leave", "finished")
    assert exit_of(run, 1)["reason"] == "stopped"
    assert len(list((run / "attempts").iterdir())) == 2
    assert site.lab.job(job)["Restarts"] == "1"
    assert json.loads((run / "environment.json").read_text())["launcher"] == "slurm"
    assert not list(Path.cwd().glob("PWNED"))


@pytest.mark.slow
def test_a_time_limit(site: Site, tmp_path: Path) -> None:
    """A real one, of 2 minutes; ranks leave by their own clock, or by USR2 up to 40 s before."""
    run = tmp_path / "run"
    slow = "slow rank=0 step=1:99 seconds=4"
    job = submitted(site, run, time_limit="2", lead=10, ELECTRA_DIST_FAULTS=slow)
    finished(site, job, run, evaluates=False)
    actions = [line["action"] for line in read_lines(run / "requeue.jsonl")]
    assert len(actions) >= 2
    assert actions == ["requeue"] * (len(actions) - 1) + ["leave"]


@pytest.mark.slow
def test_preemption_with_grace(site: Site, tmp_path: Path) -> None:
    """TERM to the tasks, as with scancel: the state of the job tells one from the other."""
    run = tmp_path / "run"
    job = submitted(site, run, partition="low", ELECTRA_DIST_FAULTS=SLOW)
    reach(site, run, 12)
    script = tmp_path / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 1\n")
    urgent = site.lab.submit("--partition=high", "--nodes=4", "--exclusive", "-o/dev/null", script)
    site.lab.wait_for(urgent, ("COMPLETED",), 90.0)
    finished(site, job, run)
    assert len(list((run / "attempts").iterdir())) == 2


@pytest.mark.slow
def test_scancel_stops_for_good(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submitted(site, run, ELECTRA_DIST_FAULTS=SLOW)
    reach(site, run, 5)
    site.lab.run("scancel", job)
    site.lab.wait_for(job, ("CANCELLED",), 60.0)
    time.sleep(8.0)  # longer than a requeued job is held
    assert site.lab.job(job)["JobState"] == "CANCELLED"
    assert len(list((run / "attempts").iterdir())) == 1


def test_a_crash_ends_the_job(site: Site, tmp_path: Path) -> None:
    """The other rank, which would wait for the dead one, is ended too."""
    rank = tmp_path / "rank.sh"
    rank.write_text("#!/bin/bash\n((SLURM_PROCID == 0)) && exit 3\nexec sleep 600\n")
    rank.chmod(0o755)
    run = tmp_path / "run"
    job = submitted(site, run, ELECTRA_DIST_RANK_COMMAND=str(rank))
    site.lab.wait_for(job, ("FAILED",), 60.0)
    (line,) = read_lines(run / "requeue.jsonl")
    assert (line["action"], line["exits_with"]) == ("leave", 1)


@pytest.mark.slow
def test_what_slurm_refuses_is_said_in_one_sentence(site: Site, tmp_path: Path) -> None:
    cluster = tmp_path / "here.toml"
    cluster.write_text('partition = "nowhere"\n')
    words = ["--out", tmp_path / "run", "--cluster", cluster]
    environ = site.lab.environ
    answer = electra("submit", "submitit", site.config, *words, code=2, environ=environ)
    assert "invalid partition specified: nowhere" in answer
    assert len(answer.splitlines()) == 1


@pytest.mark.slow
def test_on_this_machine(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    where = ["--out", run, "--cluster", "local", "--gpus-per-node", "2"]
    job = electra("submit", "submitit", site.config, *where).strip()
    site.lab.wait(lambda: not Path(f"/proc/{job}/exe").exists(), 120.0, words_of(site, run))
    assert_same_weights(run, site.calm(2))


@pytest.mark.slow
def test_the_launcher_that_lies_there(site: Site, tmp_path: Path) -> None:
    """Somebody's own executor."""
    run = tmp_path / "run"
    environ = {**os.environ, **site.lab.environ, "MASTER_ADDR": "127.0.0.1", "NNODES": "2"}
    words = [sys.executable, ROOT / "launchers" / "submitit_pretrain.py", site.config, "--out", run]
    job = site.lab.run(*words, **environ).strip()
    finished(site, job, run)
