"""When this job will be ended, by the scheduler or by the user's word; no torch.

    --time-limit 1:30:00                 counted from the command's start
    SLURM_JOB_END_TIME                   seconds since 1970; Slurm 22.05 does not set it
    squeue -h -j $SLURM_JOB_ID -o %e     2026-03-01T12:00:00, in the local time of this host

The earliest counts. No answer is never an error: the run then goes on until a signal comes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from datetime import datetime

from electra_dist.config import variables
from electra_dist.config.slurm_commands import ask_slurm
from electra_dist.errors import UserError

log = logging.getLogger(__name__)


def parse_time_limit(words: str) -> float:
    """Seconds of a --time-limit: 5400, 1:30:00, or 2-12:00:00 (days first).

    Raises:
        UserError: it is none of these.
    """
    parts = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):([0-5]?\d):)?(\d+(?:\.\d+)?)", words)
    seconds = 0.0
    if parts:
        days, hours, minutes, rest = (float(part or 0) for part in parts.groups())
        seconds = rest + 60 * (minutes + 60 * (hours + 24 * days))
    if seconds <= 0 or (parts and parts[2] is not None and float(parts[4]) >= 60):
        raise UserError(
            f"--time-limit {words} is no time: give seconds (5400), H:MM:SS (1:30:00) or "
            "D-HH:MM:SS (2-12:00:00)"
        )
    return seconds


def job_end(environ: Mapping[str, str], ask: Callable[[str], str] | None = None) -> float | None:
    """When the job ends, in seconds since 1970; None if nobody says so.

    May ask slurmctld: one rank of a run does that.

    Args:
        environ: the environment of this process.
        ask: what squeue answers for a job id; for tests.
    """
    ends = [_epoch(environ, variables.END_TIME), _epoch(environ, "SLURM_JOB_END_TIME")]
    job = environ.get("SLURM_JOB_ID", "")
    if ends[1] is None and job:
        ends.append(_from_squeue((ask or _squeue)(job)))
    return min((end for end in ends if end is not None), default=None)


def _epoch(environ: Mapping[str, str], name: str) -> float | None:
    try:
        return float(environ[name])
    except (KeyError, ValueError):
        return None


def _squeue(job: str) -> str:
    answer = ask_slurm(["squeue", "-h", "-j", job, "-o", "%e"])
    if answer.code != 0:
        log.warning("the time limit of job %s is not known (%s)", job, answer.words)
    return answer.printed


def _from_squeue(answer: str) -> float | None:
    """N/A, NONE and nothing at all are answers too."""
    for line in answer.split():
        try:
            return datetime.fromisoformat(line).timestamp()
        except ValueError:
            continue
    return None
