"""The last word of a batch script, `electra-dist requeue`: read, decide, ask Slurm, write down.

Everything that it decides stands in RUN/requeue.jsonl, one line an end: with which signals, how the
ranks ended, the newest checkpoint then, and why the job was requeued or not.
"""

import logging
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from electra_dist.launch.records import (
    append_line,
    attempt_folders,
    complete_checkpoints,
    read_json,
    read_lines,
)
from electra_dist.launch.requeue import Decision, Ending, Event, State, decide, seen

log = logging.getLogger(__name__)

ASK_SECONDS = 20.0
"""As long as a busy slurmctld may take to answer."""

RETRY_SECONDS = 10.0

PATIENCE_SECONDS = 900.0
"""As long as slurmctld may be away (a restart, a fail-over) when a job wants to be requeued."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The batch job that asks."""

    job_id: str
    restart_count: int
    """SLURM_RESTART_COUNT: how often it was requeued before, by anybody."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a Slurm command has said."""

    code: int | None
    """None: it did not answer in time, or is not installed."""
    words: str


Ask = Callable[[Sequence[str]], Answer]


def ask_slurm(words: Sequence[str]) -> Answer:
    """Run a Slurm command."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=ASK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(code=None, words=str(error))
    return Answer(code=done.returncode, words=(done.stdout + done.stderr).strip())


def ending_of(run: Path, after_attempt: int, launcher_code: int) -> Ending:
    """How the ranks of a job ended.

    Args:
        run: RUN.
        after_attempt: the newest attempt when the job began; later ones are its own.
        launcher_code: exit code of `electra-dist pretrain`, for ends before any attempt.
    """
    folders = [folder for folder in attempt_folders(run) if int(folder.name) > after_attempt]
    exits = [read_json(folder / "exit.json") for folder in folders]
    last = exits[-1] if exits else {}
    was_superseded = any(each.get("reason") == "superseded" for each in exits)
    reason = "superseded" if was_superseded else last.get("reason")
    code = last.get("exit_code")
    checkpoints = complete_checkpoints(run)
    supervisor = (read_lines(run / "supervisor.jsonl") or [{}])[-1]
    if supervisor.get("attempt") not in [int(folder.name) for folder in folders]:
        supervisor = {}
    return Ending(
        reason=reason if isinstance(reason, str) else None,
        exit_code=code if isinstance(code, int) else launcher_code,
        checkpoint=checkpoints[-1] if checkpoints else None,
        needs_nodes=supervisor.get("needs_nodes") is True,
        supervisor_said=supervisor.get("why"),
    )


def end_job(
    run: Path,
    job: Job,
    ending: Ending,
    signals: Sequence[str],
    *,
    max_fruitless: int,
    ask: Ask = ask_slurm,
    sleep: Callable[[float], None] = time.sleep,
) -> Decision:
    """Decide, requeue the job if that is the decision, and write it to RUN/requeue.jsonl.

    Args:
        run: RUN.
        job: this one.
        ending: how its ranks ended.
        signals: what the batch shell has received, in order: USR1, TERM.
        max_fruitless: see `decide`.
        ask: runs a Slurm command; for tests.
        sleep: waits; for tests.
    """
    state = seen(State(), ending)
    for word in signals:
        state = seen(state, Event(word))
    earlier = _earlier_checkpoints(run, job)
    waited = 0.0
    while True:
        # Asked each time: a job that was cancelled in the meantime must stay cancelled.
        job_state = _job_state(job.job_id, ask)
        decision = decide(state, earlier, max_fruitless=max_fruitless, job_state=job_state)
        assert decision is not None  # the ranks have ended
        if not decision.requeue:
            break
        if waited == 0.0:  # written before it is done, which ends this very process
            _record(run, job, ending, signals, decision)
        answer = ask(["scontrol", "requeue", job.job_id]) if job_state else None
        if answer and answer.code == 0:
            return decision
        if waited >= PATIENCE_SECONDS or (answer and "disabled" in answer.words.lower()):
            said = answer.words if answer else "slurmctld does not answer"
            why = f"{decision.why}, but Slurm does not requeue the job: {said}"
            decision = Decision(requeue=False, exit_code=decision.exit_code, why=why)
            break
        sleep(RETRY_SECONDS)
        waited += RETRY_SECONDS
    _record(run, job, ending, signals, decision)
    return decision


def _job_state(job_id: str, ask: Ask) -> str | None:
    answer = ask(["scontrol", "show", "job", "--oneliner", job_id])
    found = re.search(r"\bJobState=(\w+)", answer.words)
    return found[1] if found and answer.code == 0 else None


def _earlier_checkpoints(run: Path, job: Job) -> list[str | None]:
    """The newest one at each earlier end of this job, after that of the end before this job."""
    checkpoints: dict[tuple[object, object], str | None] = {}
    for line in read_lines(run / "requeue.jsonl"):
        # Two lines of one end: it was to be requeued, and Slurm would not.
        key = (line.get("job"), line.get("restart_count"))
        name = line.get("checkpoint")
        checkpoints[key] = name if isinstance(name, str) else None
    ours = [name for (job_id, _), name in checkpoints.items() if job_id == job.job_id]
    before = [name for (job_id, _), name in checkpoints.items() if job_id != job.job_id]
    return [*before[-1:], *ours]


def _record(
    run: Path, job: Job, ending: Ending, signals: Sequence[str], decision: Decision
) -> None:
    record = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "job": job.job_id,
        "restart_count": job.restart_count,
        "signals": list(signals),
        "reason": ending.reason,
        "checkpoint": ending.checkpoint,
        "action": "requeue" if decision.requeue else "leave",
        "exits_with": decision.exit_code,
        "why": decision.why,
    }
    if not run.is_dir():  # a mistake of the user, before there was a run
        return
    try:
        append_line(run / "requeue.jsonl", record)
    except OSError as error:
        log.error("%s could not be written (%s)", run / "requeue.jsonl", error)
