"""Handing a batch script to Slurm."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from electra_dist.errors import UserError

SBATCH_SECONDS = 120.0
"""As long as a busy slurmctld may take to accept a job."""


def write_script(run: Path, script: str, config: str) -> Path:
    """Write RUN/submit.sbatch, and the config as it was resolved as RUN/submit.json.

    What is submitted stays what it was when its user edits the config file the day after.
    """
    run.mkdir(parents=True, exist_ok=True)
    for name, text in (("submit.json", config), ("submit.sbatch", script)):
        temporary = run / f".{name}.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, run / name)
    return run / "submit.sbatch"


def check_with_slurm(script: Path) -> str:
    """What `sbatch --test-only` says: when and where the job would start.

    Raises:
        UserError: Slurm would not take it.
    """
    return _sbatch(["--test-only", str(script)]).strip()


def submit_chain(script: Path, num_jobs: int) -> list[str]:
    """Submit the script so many times, each job after the one before; returns the job ids.

    A job of a chain starts once the one before has ended without having finished the run (exit code
    75, a lost node, a time limit); once it is finished, the rest is cancelled by Slurm.

    Raises:
        UserError: Slurm does not take it.
    """
    ids: list[str] = []
    for _ in range(num_jobs):
        after = [f"--dependency=afternotok:{ids[-1]}", "--kill-on-invalid-dep=yes"] if ids else []
        answer = _sbatch(["--parsable", *after, str(script)])
        found = re.search(r"^(\d+)", answer, re.MULTILINE)
        if not found:
            raise UserError(f"sbatch answered {answer!r} instead of a job id; see squeue --me")
        ids.append(found[1])
    return ids


def _sbatch(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            ["sbatch", *words],
            capture_output=True,
            text=True,
            timeout=SBATCH_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise UserError(
            "sbatch is not on the PATH: submit from a login node of the cluster, or use --dry-run"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"sbatch did not answer in {SBATCH_SECONDS:.0f} s; look at squeue --me, then try again"
        ) from None
    if done.returncode != 0:
        words_of_slurm = " ".join(done.stderr.split())
        raise UserError(
            f"Slurm does not take {words[-1]}: {words_of_slurm}; "
            "correct the cluster file or the options"
        )
    return done.stdout + done.stderr
