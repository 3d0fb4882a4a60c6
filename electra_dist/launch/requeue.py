"""Should this Slurm job run again? A small state machine, asked by the batch script at its end.

    events      what the batch shell has seen: USR1 (the time limit is near), TERM (scancel)
    ending      why the newest attempt of this job's start ended: exit.json
    verdict     requeue, or leave with an exit code

The rules are those of contracts, section 7. A TERM to the shell never requeues: an outside requeue
is done by Slurm itself, and `scontrol requeue` after scancel would bring the job back to life.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from electra_dist.launch.records import (
    append_line,
    attempt_folders,
    complete_checkpoints,
    read_json,
    read_lines,
)
from electra_dist.launch.restarts import FAILED, STOPPED, USER_MISTAKE

log = logging.getLogger(__name__)

SETTLE_SECONDS = 2.0
"""Ranks may be gone before the TERM of a scancel reaches the shell, or Slurm's books."""
ASK_SECONDS = 30.0
MAX_FRUITLESS = 3
"""Requeues in a row without a new checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How this start of the job ended."""

    got_usr1: bool
    """The batch shell: Slurm has said that the time limit is near."""
    got_term: bool
    """The batch shell: scancel, or a requeue by somebody else."""
    reason: str | None
    """Of the newest attempt's exit.json; None: it crashed, or there was no attempt."""
    exit_code: int
    """Of exit.json; else what `electra-dist pretrain` left with."""
    needs_nodes: bool = False
    """The supervisor gave up because the allocation has lost nodes."""
    num_fruitless: int = 0
    """Requeues in a row before this one that were followed by no new checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the batch script does."""

    requeue: bool
    exit_code: int
    why: str


def decide(ending: Ending, max_fruitless: int = MAX_FRUITLESS) -> Verdict:
    """The rules, in order; the first that applies counts."""
    if ending.reason in ("finished", "asked"):
        return Verdict(requeue=False, exit_code=0, why=ending.reason)
    code = STOPPED if ending.reason == "stopped" else (ending.exit_code or FAILED)
    if ending.got_term:
        return Verdict(requeue=False, exit_code=code, why="TERM: a requeue is Slurm's own affair")
    if ending.reason == "superseded":
        return Verdict(requeue=False, exit_code=code, why="a later attempt owns the run folder")
    if ending.exit_code == USER_MISTAKE:
        return Verdict(requeue=False, exit_code=code, why="a restart would meet the same mistake")
    if ending.got_usr1:
        why = "the time limit is near"
    elif ending.reason == "stopped":
        why = "the ranks were told to stop (preemption)"
    elif ending.needs_nodes:
        why = "the allocation has lost nodes"
    else:
        return Verdict(requeue=False, exit_code=code, why="it failed, and not for want of time")
    if ending.num_fruitless >= max_fruitless:
        return Verdict(
            requeue=False,
            exit_code=FAILED,
            why=f"{ending.num_fruitless} requeues in a row have brought no new checkpoint",
        )
    return Verdict(requeue=True, exit_code=code, why=why)


def ending_of(run: Path, since: float, signals: Sequence[str], exit_code: int) -> Ending:
    """Read from the run folder how the start of the job ended that began at `since`.

    Args:
        run: RUN.
        since: seconds since 1970; attempts claimed before are another start's.
        signals: names that the batch shell has got, such as USR1.
        exit_code: of `electra-dist pretrain`.
    """
    reason: str | None = None
    newest = attempt_folders(run)[-1:]
    if newest and float(read_json(newest[0] / "start.json").get("claimed", 0.0)) >= since:
        ended = read_json(newest[0] / "exit.json")
        reason, exit_code = ended.get("reason"), int(ended.get("exit_code", exit_code))
    supervised = [line for line in read_lines(run / "supervisor.jsonl") if line["ended"] >= since]
    return Ending(
        got_usr1="USR1" in signals,
        got_term="TERM" in signals,
        reason=reason,
        exit_code=exit_code,
        needs_nodes=bool(supervised and supervised[-1].get("needs_nodes")),
        num_fruitless=_num_fruitless(run),
    )


def requeue(run: Path, ending: Ending, environ: Mapping[str, str], max_fruitless: int) -> int:
    """Decide, record it in RUN/requeue.jsonl, and have Slurm requeue this job if that is it.

    Returns:
        The exit code for the batch script: 75 after a requeue, by when it may be dead.
    """
    job_id = environ.get("SLURM_JOB_ID", "")
    verdict = decide(ending, max_fruitless)
    if verdict.requeue:
        time.sleep(SETTLE_SECONDS)
        state = job_state(job_id)
        if state not in ("RUNNING", "PREEMPTED", "unknown"):  # cancelled, or requeued by another
            verdict = Verdict(
                requeue=False, exit_code=verdict.exit_code, why=f"the job is {state} already"
            )
    record: dict[str, Any] = {
        "time": round(time.time(), 3),
        "job": job_id,
        "restart": int(environ.get("SLURM_RESTART_COUNT", 0)),
        "requeue": verdict.requeue,
        "why": verdict.why,
        "checkpoint": _newest(run),
    }
    if run.is_dir():
        append_line(run / "requeue.jsonl", record)
    log.warning("%s: %s", "requeued" if verdict.requeue else "not requeued", verdict.why)
    if verdict.requeue:
        subprocess.run(["scontrol", "requeue", job_id], check=True, timeout=ASK_SECONDS)
    return verdict.exit_code


def job_state(job_id: str) -> str:
    """What Slurm says of the job: RUNNING, COMPLETING ...; `unknown` if it does not answer."""
    try:
        done = subprocess.run(
            ["squeue", "-h", "-j", job_id, "-o", "%T"],
            capture_output=True,
            text=True,
            check=False,
            timeout=ASK_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or ("unknown" if done.returncode else "GONE")


def _newest(run: Path) -> str | None:
    return next(reversed(complete_checkpoints(run)), None)


def _num_fruitless(run: Path) -> int:
    """Newest requeues in a row after which the newest checkpoint is still the same as now."""
    newest = _newest(run)
    count = 0
    for line in reversed(read_lines(run / "requeue.jsonl")):
        if not line.get("requeue") or line.get("checkpoint") != newest:
            break
        count += 1
    return count


def signals_of(words: str) -> list[str]:
    """`USR1,TERM` or `USR1 TERM` as a list; SIG in front is left out."""
    return [word.removeprefix("SIG") for word in words.replace(",", " ").split()]
