"""Which Slurm jobs belong to a run, what Slurm says of them, and which run a job belongs to.

RUN/jobs.jsonl has a line for each submission by `electra-dist submit`; a job that was submitted by
hand is known from start.json of its attempts. Slurm need not be there: then nothing is said of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from electra_dist.config.slurm_commands import Answer, Ask, ask_slurm, job_fields
from electra_dist.errors import UserError
from electra_dist.launch.records import append_record, attempt_folders, read_json, read_lines

NUM_JOBS = 10
"""As many are asked for: the newest ones."""

STATUS_SECONDS = 5.0
"""A status without Slurm's words is better than one that waits for them."""

JOB_ID = re.compile(r"\d+(_\d+)?")
SQUEUE_FORMAT = "%i|%T|%S|%e|%N|%r"
"""The reason last: of all these it alone is free text, and may hold a bar."""


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What Slurm says of a job that it knows: one that waits, runs, or has ended lately."""

    job: str
    state: str
    """PENDING, RUNNING, COMPLETED ..."""
    reason: str | None
    """Why it waits: Resources, Priority, BeginTime (held after a requeue) ..."""
    starts: str | None
    """When it has started, or is expected to; local time of the cluster."""
    ends: str | None
    """When it has ended, or its time limit is reached."""
    nodes: str | None
    """In Slurm's short form."""


def note_submissions(run: Path, job_ids: Sequence[str], command: str) -> None:
    """Add jobs to RUN/jobs.jsonl.

    Args:
        run: RUN, which exists.
        job_ids: of the new jobs.
        command: that has submitted them.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    for job_id in job_ids:
        append_record(run / "jobs.jsonl", {"time": now, "job": job_id, "command": command})


def jobs_of(run: Path) -> list[str]:
    """Ids of the run's Slurm jobs, oldest first, each once, the newest few."""
    found = [str(line.get("job")) for line in read_lines(run / "jobs.jsonl")]
    for folder in attempt_folders(run)[-NUM_JOBS:]:
        found += [str(job) for job in [read_json(folder / "start.json").get("job")] if job]
    ids = dict.fromkeys(job for job in found if JOB_ID.fullmatch(job))
    return sorted(ids, key=lambda job: int(job.partition("_")[0]))[-NUM_JOBS:]


def ask_quickly(words: Sequence[str]) -> Answer:
    """Run a Slurm command, for somebody who looks at the screen."""
    return ask_slurm(words, STATUS_SECONDS)


def job_statuses(run: Path, ask: Ask = ask_quickly) -> list[JobStatus]:
    """What Slurm says of the run's jobs; nothing of those that it does not know (any more)."""
    ids = jobs_of(run)
    if not ids:
        return []
    # With one id alone squeue makes an error of one that it does not know: nothing is printed.
    answer = ask(["squeue", "-h", "-t", "all", "-j", ",".join(ids), "-o", SQUEUE_FORMAT])
    statuses = []
    for line in answer.printed.splitlines():
        job, state, *rest = [word.strip() for word in line.split("|", 5)]
        starts, ends, nodes, reason = (
            None if word in ("", "None", "N/A", "NONE", "(null)") else word for word in rest
        )
        statuses.append(
            JobStatus(job=job, state=state, reason=reason, starts=starts, ends=ends, nodes=nodes)
        )
    return statuses


def in_words(status: JobStatus) -> str:
    """One line of `electra-dist status`."""
    parts = [status.state.lower()]
    parts += [f"on {status.nodes}"] if status.nodes else []
    if status.state == "PENDING":
        parts += [f"({status.reason})"] if status.reason else []
        parts += [f"expected to start at {status.starts}"] if status.starts else []
    elif status.ends:
        parts.append(f"until {status.ends}")
    return " ".join(parts)


def run_of_job(job_id: str, ask: Ask = ask_quickly) -> Path:
    """The run folder of a Slurm job, by what Slurm knows of its script.

    Raises:
        UserError: Slurm is not here, does not know the job (it forgets those that ended some
            minutes ago), or the job is none of ours.
    """
    answer = ask(["scontrol", "show", "job", job_id])
    if answer.code is None:
        raise UserError(f"{job_id}: scontrol gives no answer here; give the run's folder")
    if answer.code != 0:
        raise UserError(f"Slurm knows no job {job_id} (any more); give the run's folder")
    fields = job_fields(answer.printed)
    for folder in _candidates(fields.get("Command", ""), Path(fields.get("WorkDir", "/"))):
        if is_run(folder):
            return folder
    raise UserError(
        f"job {job_id} ({fields.get('Command')}) has no run folder yet, or is no pretraining; "
        "give the run's folder"
    )


def is_run(folder: Path) -> bool:
    """Whether a run has been started or submitted there."""
    return any((folder / name).exists() for name in ("config.json", "attempts", "jobs.jsonl"))


def _candidates(command: str, folder: Path) -> list[Path]:
    """RUN/submit.sbatch, RUN/submitit/script, or pretrain.sbatch CONFIG RUN ...: maybe RUN.

    Slurm joins a script's words with blanks, so a path of several words is tried as well.
    """
    words = command.split(" ")
    found = []
    for end in range(len(words), 0, -1):
        script = folder / " ".join(words[:end])
        if script.is_file() or script.is_symlink():
            found += list(script.parents)[:2]
    for start in range(1, len(words)):
        found += [folder / " ".join(words[start:end]) for end in range(start + 1, len(words) + 1)]
    return found
