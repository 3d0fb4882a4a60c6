"""What the tests in a real Slurm submit, and how they wait for it."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from electra_dist.launch.records import complete_checkpoints, read_lines
from tests.cluster.slurm_lab import SlurmLab
from tests.made_up import SMALLEST

ROOT = Path(__file__).parents[2]
NUM_STEPS = 40

TINY = (
    SMALLEST
    + """\
[batch]
global_batch_size = 16
micro_batch_size = 4
[schedule]
num_steps = {num_steps}
warmup_steps = 4
[engine]
kind = "reference"
zero_stage = 1
threads_per_rank = 1
timeout_seconds = 60.0
[checkpoint]
every_steps = 10
[resilience]
end_margin_seconds = 1.0
term_grace_seconds = 8.0
[metrics]
log_every = 1
eval_every = 1000
tensorboard = false
"""
)


@dataclass
class Site:
    """A lab, what jobs are made of, and the runs that nothing disturbed."""

    lab: SlurmLab
    config: Path
    folder: Path
    _calm: dict[int, Path] = field(default_factory=dict)

    def submit(
        self,
        run: Path,
        *flags: str,
        words: tuple[str, ...] = (),
        tasks: int = 1,
        config: Path | None = None,
        **variables: str,
    ) -> str:
        """Submit slurm/pretrain.sbatch as it is, on 2 nodes."""
        run.parent.mkdir(parents=True, exist_ok=True)
        return self.lab.submit(
            *("--nodes=2", f"--ntasks-per-node={tasks}", f"--output={run.parent}/job-%j.out"),
            *flags,
            ROOT / "slurm" / "pretrain.sbatch",
            config or self.config,
            run,
            *words,
            # Virtual nodes have no names of their own in the DNS.
            **{"MASTER_ADDR": "127.0.0.1", **variables},
            PYTHON=sys.executable,
            PYTHONPATH=str(ROOT),
        )

    def step(self, run: Path) -> int:
        """The last logged step."""
        lines = read_lines(run / "metrics.jsonl")
        return int(lines[-1]["step"]) if lines else 0

    def reach(self, job: str, run: Path, step: int) -> None:
        """Wait until the run is that far."""

        def is_there() -> bool:
            state = self.lab.job(job).get("JobState")
            assert state in ("PENDING", "RUNNING", "CONFIGURING"), self.words(run) + f"{state}"
            return self.step(run) >= step

        self.lab.wait(is_there, 120.0, f"{run} is at step {step}")

    def words(self, run: Path) -> str:
        """What the run's jobs have written."""
        return "\n".join(path.read_text() for path in run.parent.glob("job-*.out"))[-6000:]

    def end(self, job: str, run: Path, state: str, seconds: float = 240.0) -> dict[str, Any]:
        """Wait for the job's end, which is to be `state`; the last line of requeue.jsonl."""
        states = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")
        found = self.lab.wait_for(job, states, seconds)["JobState"]
        assert found == state, f"{found}\n{self.words(run)}\n{self.lab.state()}"
        return (read_lines(run / "requeue.jsonl") or [{}])[-1]

    def finished(self, job: str, run: Path, *, attempts: int | None, tasks: int = 1) -> None:
        """The job ends by itself, COMPLETED, and its run is the calm one's twin."""
        self.end(job, run, "COMPLETED")
        num_attempts = len(list((run / "attempts").iterdir()))
        assert attempts in (None, num_attempts), self.words(run)
        calm = self.calm(2 * tasks)
        assert_same_weights(run, calm)
        assert numbers(run) == numbers(calm)

    def calm(self, world_size: int) -> Path:
        """The same run without Slurm and without disturbance, made once."""
        if world_size not in self._calm:
            run = self.folder / f"calm_{world_size}"
            electra("pretrain", self.config, "--out", run, "--nproc", world_size)
            self._calm[world_size] = run
        return self._calm[world_size]


def electra(*words: object, code: int = 0, environ: dict[str, str] | None = None) -> str:
    """Run electra-dist; returns its stdout, behind it its stderr if `code` is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "electra_dist", *map(str, words)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


def numbers(run: Path) -> list[dict[str, Any]]:
    """The metrics without the clock."""
    lines = read_lines(run / "metrics.jsonl")
    return [{name: x for name, x in line.items() if name != "timing"} for line in lines]


def assert_same_weights(run: Path, other: Path) -> None:
    """Every weight and moment of the newest checkpoints, bit for bit."""
    newest = [one / "checkpoints" / complete_checkpoints(one)[-1] for one in (run, other)]
    electra("checkpoint", "diff", *newest)


def exit_of(run: Path, attempt: int) -> dict[str, Any]:
    """exit.json of an attempt."""
    text = (run / "attempts" / f"{attempt:04d}" / "exit.json").read_text()
    value: dict[str, Any] = json.loads(text)
    return value
