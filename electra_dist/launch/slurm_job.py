"""The last word of a batch script, `electra-dist requeue`: read, decide, ask Slurm, write down.

Everything that it decides stands in RUN/requeue.jsonl, one line an end: with which signals, how the
ranks ended, the newest checkpoint then, and why the job was requeued or not.
"""

import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from electra_dist.config.slurm_commands import Answer, Ask, ask_slurm, job_fields
from electra_dist.config.slurm_names import expand_hostlist
from electra_dist.launch.preflight import found_in_job
from electra_dist.launch.records import (
    append_record,
    attempt_folders,
    complete_checkpoints,
    read_json,
    read_lines,
)
from electra_dist.launch.requeue import Decision, Ending, Event, State, decide, seen

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0

EXCLUDE_TRIES = 5

PATIENCE_SECONDS = 900.0
"""As long as slurmctld may be away (a restart, a fail-over) when a job wants to be requeued."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The batch job that asks."""

    job_id: str
    restart_count: int
    """SLURM_RESTART_COUNT: how often it was requeued before, by anybody."""


def ending_of(run: Path, after_attempt: int, launcher_code: int, job: Job | None = None) -> Ending:
    """How the ranks of a job ended.

    Args:
        run: RUN.
        after_attempt: the newest attempt when the job began; later ones are its own.
        launcher_code: exit code of `electra-dist pretrain`, for ends before any attempt.
        job: whose nodes the doctor has looked at; None: he has not.
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
    examined = found_in_job(run, job.job_id, job.restart_count) if job else None
    why_not = examined.why_not if examined and not folders else None
    return Ending(
        reason=reason if isinstance(reason, str) else None,
        exit_code=code if isinstance(code, int) else launcher_code,
        checkpoint=checkpoints[-1] if checkpoints else None,
        needs_nodes=supervisor.get("needs_nodes") is True,
        supervisor_said=why_not or supervisor.get("why"),
        bad_nodes=examined.left_out if examined else (),
        needs_fit_nodes=why_not is not None,
    )


def end_job(
    run: Path,
    job: Job,
    ending: Ending,
    signals: Sequence[str],
    *,
    max_fruitless: int,
    ask: Ask = ask_slurm,
    requeue: Callable[[str], Answer] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Decision:
    """Decide, requeue the job if that is the decision, and write it to RUN/requeue.jsonl.

    Args:
        run: RUN.
        job: this one.
        ending: how its ranks ended.
        signals: what the batch shell has received, in order: USR1, TERM.
        max_fruitless: see `decide`.
        ask: runs a Slurm command.
        requeue: of the job with this id; None: `scontrol requeue`.
        sleep: waits; for tests.
    """
    state = seen(State(), ending)
    for word in signals:
        state = seen(state, Event(word))
    earlier = _earlier_checkpoints(run, job)
    requeue = requeue or (lambda job_id: ask(["scontrol", "requeue", job_id]))
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
        answer = _requeue(job.job_id, decision, requeue, ask, sleep) if job_state else None
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


def _requeue(
    job_id: str,
    decision: Decision,
    requeue: Callable[[str], Answer],
    ask: Ask,
    sleep: Callable[[float], None],
) -> Answer:
    """Requeue the job, and keep it off the decision's nodes."""
    if not decision.exclude:
        return requeue(job_id)
    found = job_fields(ask(["scontrol", "show", "job", job_id]).printed).get("ExcNodeList")
    excluded = [] if found in (None, "(null)") else expand_hostlist(str(found))
    nodes = ",".join(dict.fromkeys([*excluded, *decision.exclude]))
    # The list of a running job can't be changed, and a requeue sends TERM to this very process and
    # to the scontrol that it starts: both live on until Slurm's KillWait (2 to 30 s), and the job
    # is not started again before (seen on 22.05).
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        answer = requeue(job_id)
        if answer.code == 0:
            _exclude(job_id, nodes, ask, sleep)
        return answer
    finally:
        signal.signal(signal.SIGTERM, before)


def _exclude(job_id: str, nodes: str, ask: Ask, sleep: Callable[[float], None]) -> None:
    for _ in range(EXCLUDE_TRIES):
        answer = ask(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={nodes}"])
        if answer.code == 0:
            return
        sleep(0.2)
    log.error("job %s may be given %s again: %s", job_id, nodes, answer.words)


def _job_state(job_id: str, ask: Ask) -> str | None:
    return job_fields(ask(["scontrol", "show", "job", job_id]).printed).get("JobState")


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
        **({"excluded": list(decision.exclude)} if decision.exclude else {}),
    }
    if not run.is_dir():  # a mistake of the user, before there was a run
        return
    try:
        append_record(run / "requeue.jsonl", record)
    except OSError as error:
        log.error("%s could not be written (%s)", run / "requeue.jsonl", error)
