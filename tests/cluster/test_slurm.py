"""Runs in a real Slurm of four virtual nodes: each ends by itself with the calm run's weights."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from electra_dist.launch.records import complete_checkpoints, read_lines
from tests.cluster.slurm_lab import SlurmLab, slurm_lab
from tests.made_up import corpus

pytestmark = [pytest.mark.cluster, pytest.mark.needs_slurm]

ROOT = Path(__file__).parents[2]
NUM_STEPS = 200
WORLD_SIZE = 4

TINY = """
recipe = "tiny"
[model]
num_layers = 1
hidden_size = 32
embedding_size = 16
generator_num_layers = 1
generator_hidden_size = 16
[data]
corpus = "{corpus}"
sequence_length = 32
[batch]
global_batch_size = 16
micro_batch_size = 4
[schedule]
num_steps = {num_steps}
warmup_steps = 10
[engine]
kind = "reference"
zero_stage = 1
threads_per_rank = 1
timeout_seconds = 60.0
[checkpoint]
every_steps = 20
[resilience]
end_margin_seconds = 1.0
term_grace_seconds = 8.0
[metrics]
log_every = 5
eval_every = 200
tensorboard = false
"""


@dataclass
class Site:
    """A lab, what jobs are made of, and the run that nothing disturbed."""

    lab: SlurmLab
    config: Path
    calm: Path

    def submit(self, run: Path, *flags: str) -> str:
        """Submit slurm/pretrain.sbatch as it is, on 2 nodes of 2 ranks."""
        run.parent.mkdir(parents=True, exist_ok=True)
        return self.lab.submit(
            *("--nodes=2", "--ntasks-per-node=2", f"--output={run.parent}/job-%j.out"),
            *flags,
            ROOT / "slurm" / "pretrain.sbatch",
            self.config,
            run,
            # Virtual nodes have no names of their own in the DNS.
            MASTER_ADDR="127.0.0.1",
            PYTHON=sys.executable,
            PYTHONPATH=str(ROOT),
        )

    def step(self, run: Path) -> int:
        """The last logged step."""
        lines = read_lines(run / "metrics.jsonl")
        return int(lines[-1]["step"]) if lines else 0

    def reach(self, run: Path, step: int) -> None:
        """Wait until the run is that far."""
        self.lab.wait(lambda: self.step(run) >= step, 90.0, f"{run} is at step {step}")

    def finished(self, job: str, run: Path, *, attempts: int) -> None:
        """The job ends by itself, COMPLETED, and its run is the calm one's twin."""
        state = self.lab.wait_for(job, ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"), 200.0)
        words = "\n".join(path.read_text() for path in run.parent.glob("job-*.out"))
        assert state["JobState"] == "COMPLETED", words + self.lab.state()
        assert len(list((run / "attempts").iterdir())) == attempts, words
        assert_same_weights(run, self.calm)
        assert numbers(run) == numbers(self.calm)


def numbers(run: Path) -> list[dict[str, Any]]:
    """The metrics without the clock."""
    lines = read_lines(run / "metrics.jsonl")
    return [{name: x for name, x in line.items() if name != "timing"} for line in lines]


def assert_same_weights(run: Path, other: Path) -> None:
    newest = [one / "checkpoints" / complete_checkpoints(one)[-1] for one in (run, other)]
    command = [sys.executable, "-m", "electra_dist", "checkpoint", "diff", *map(str, newest)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("slurm")
    config = folder / "tiny.toml"
    made = corpus(folder / "made", length=32)
    config.write_text(TINY.format(corpus=made, num_steps=NUM_STEPS))
    calm = folder / "calm"
    command = [sys.executable, "-m", "electra_dist", "pretrain", str(config), "--out", str(calm)]
    subprocess.run(
        [*command, "--nproc", str(WORLD_SIZE)], cwd=ROOT, check=True, capture_output=True
    )
    # A short path: the names of unix sockets end at 107 characters.
    with slurm_lab(Path(tempfile.mkdtemp(prefix="lab")) / "s") as lab:
        yield Site(lab, config, calm)


def test_a_job_trains_to_the_end_as_without_slurm(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = site.submit(run)
    site.finished(job, run, attempts=1)
    facts = json.loads((run / "environment.json").read_text())
    assert (facts["launcher"], facts["world_size"]) == ("slurm", WORLD_SIZE)


def test_a_requeue_by_hand(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = site.submit(run)
    site.reach(run, 60)
    site.lab.run("scontrol", "requeue", job)
    site.finished(job, run, attempts=2)


def test_preemption_with_grace(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = site.submit(run, "--partition=low")
    site.reach(run, 60)
    script = tmp_path / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 3\n")
    urgent = site.lab.submit("--partition=high", "--nodes=4", "--exclusive", "-o/dev/null", script)
    site.lab.wait_for(urgent, ("COMPLETED",), 90.0)
    site.finished(job, run, attempts=2)


def test_a_node_that_dies(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = site.submit(run)
    site.reach(run, 60)
    second = site.lab.run("scontrol", "show", "hostnames", site.lab.job(job)["NodeList"]).split()[1]
    site.lab.kill_node(second)
    try:
        site.finished(job, run, attempts=2)
    finally:
        site.lab.start_node(second)
        site.lab.wait(site.lab.all_idle, 60.0, "the node is back")


def test_a_controller_that_is_started_again(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = site.submit(run)
    site.reach(run, 40)
    site.lab.kill("slurmctld")
    time.sleep(2.0)
    site.lab.start_controller()
    site.finished(job, run, attempts=1)


def test_scancel_stops_for_good(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = site.submit(run)
    site.reach(run, 20)
    site.lab.run("scancel", job)
    state = site.lab.wait_for(job, ("CANCELLED", "COMPLETED", "PENDING"), 60.0)
    assert state["JobState"] == "CANCELLED"
    time.sleep(10.0)  # longer than a requeued job is held
    assert site.lab.job(job)["JobState"] == "CANCELLED"
    assert len(list((run / "attempts").iterdir())) == 1


def test_a_run_asked_to_stop_is_not_requeued(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = site.submit(run)
    site.reach(run, 20)
    command = [sys.executable, "-m", "electra_dist", "stop", str(run)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    site.lab.wait_for(job, ("COMPLETED",), 60.0)
    ended = json.loads((run / "attempts" / "0001" / "exit.json").read_text())
    assert ended["reason"] == "asked"
    assert len(list((run / "attempts").iterdir())) == 1
