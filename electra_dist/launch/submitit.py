"""Hand a run to submitit: a cluster's facts in submitit's words, and the submission.

submitit writes its own batch script, with `srun` of one task a rank, and keeps script, pickles and
logs in RUN/submitit. What a site file says reaches it as `submit slurm` would write it.
"""

from __future__ import annotations

import shlex
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from electra_dist.config.cluster import ClusterConfig
from electra_dist.config.slurm_names import slurm_minutes
from electra_dist.errors import UserError
from electra_dist.launch.requeue import MAX_FRUITLESS
from electra_dist.launch.slurm import Job, may_requeue, options, quoted, setting
from electra_dist.launch.submitit_job import Pretraining

MAX_TIMEOUTS = 1_000_000
"""submitit would give up after 3 time limits; here `launch.requeue` says when."""

LOCAL = "local"
"""In place of a cluster: the ranks on this machine, by submitit's LocalExecutor."""

LOCAL_MINUTES = 60 * 24 * 365
"""There, without --time."""

OWN = ("job-name", "nodes", "ntasks-per-node", "time", "signal", "output", "open-mode")
"""Options that submitit has its own words for, or its own place."""


def slurm_parameters(job: Job, cluster: ClusterConfig) -> dict[str, Any]:
    """For SlurmExecutor.update_parameters.

    Raises:
        UserError: submitit can't say it.
    """
    cluster = replace(cluster, tasks="per_gpu")  # each of submitit's tasks is a rank
    named = options(job, cluster)
    for word in cluster.sbatch:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UserError(
                f"cluster.sbatch = {word!r} can't be handed to submitit; write it as --name=value"
            )
        if name in OWN:
            raise UserError(
                f"cluster.sbatch = {word!r} is what submitit decides itself; remove it, or take "
                "submit slurm"
            )
        named[name] = value if equals else True
    for one in named.values():
        quoted(str(one))  # refuses what no #SBATCH line can hold
    # A task that fails ends the others, whose ranks may wait for it; one whose rank has saved and
    # left must not, whatever slurm.conf says. srun takes the cores not over from sbatch (22.05).
    step = ["--kill-on-bad-exit=1", "--wait=0"]
    step += [f"--cpus-per-task={cluster.cpus_per_task}"] if cluster.cpus_per_task else []
    return {
        "job_name": str(named["job-name"]),
        "nodes": job.num_nodes,
        "ntasks_per_node": cluster.num_tasks_per_node,
        "time": _minutes(job.time or cluster.time),
        "signal_delay_s": cluster.signal_lead_seconds,
        "setup": setting(cluster),
        "srun_args": step,
        "additional_parameters": {k: v for k, v in named.items() if k not in OWN},
    }


def submission_text(job: Job, cluster: ClusterConfig) -> str:
    """The batch script that submitit would write."""
    module = _submitit().slurm.slurm
    python = shlex.quote(cluster.python or job.python)
    folder = submitit_folder(job.run)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    text = module._make_sbatch_string(
        command=command, folder=folder, **slurm_parameters(job, cluster)
    )
    return str(text)


def submit_slurm(job: Job, cluster: ClusterConfig) -> str:
    """Submit the run through sbatch.

    Returns:
        The job's id.

    Raises:
        UserError: submitit or Slurm is not here, or Slurm does not take it.
    """
    submitit = _submitit()
    parameters = slurm_parameters(job, cluster)
    try:
        executor = submitit.SlurmExecutor(
            folder=submitit_folder(job.run),
            max_num_timeout=MAX_TIMEOUTS,
            python=shlex.quote(cluster.python or job.python),
        )
    except RuntimeError:
        raise UserError(
            "srun is not on the PATH of this machine; submit from a login node, or look at the "
            "script with --dry-run"
        ) from None
    executor.update_parameters(**parameters)
    pretraining = Pretraining(
        job.words, job.run, max_fruitless=MAX_FRUITLESS if may_requeue(job, cluster) else 0
    )
    try:
        with redirect_stderr(StringIO()):  # submitit prints what it raises, too
            return str(executor.submit(pretraining).job_id)
    except submitit.core.utils.FailedJobError as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"sbatch refused the script: {said}; change --cluster or its file"
        ) from None


def submit_local(job: Job, num_ranks: int) -> str:
    """Start the run on this machine, as submitit's LocalExecutor does it, and return at once.

    Returns:
        The job's id, which is that of its first process.

    Raises:
        UserError: submitit is not here.
    """
    executor = _submitit().LocalExecutor(
        folder=submitit_folder(job.run), max_num_timeout=MAX_TIMEOUTS
    )
    minutes = _minutes(job.time) if job.time else LOCAL_MINUTES
    executor.update_parameters(tasks_per_node=num_ranks, timeout_min=minutes)
    return str(executor.submit(Pretraining(job.words, job.run)).job_id)


def _minutes(time: str) -> int:
    minutes = slurm_minutes(time)
    if minutes is None:
        raise UserError(f"--time {time}: submitit needs a limit; give one, such as 24:00:00")
    return minutes


def submitit_folder(run: Path) -> Path:
    """RUN/submitit.

    Raises:
        UserError: submitit would read something else in its name.
    """
    if "%" in str(run):
        raise UserError(f"--out {run}: submitit can't have a % in the folder's name; take another")
    return run / "submitit"


def _submitit() -> Any:
    try:
        import submitit
        import submitit.slurm.slurm
    except ModuleNotFoundError:
        raise UserError(
            "submitit is not installed for this Python; pip install submitit, or use "
            "`electra-dist submit slurm`, which needs nothing"
        ) from None
    return submitit
