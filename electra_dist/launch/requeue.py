"""Shall this Slurm job be started again? Asked by the batch script once its ranks are gone.

    USR1 ──> warned      the time limit is near
    TERM ──> told to end scancel, or Slurm has requeued the job itself
    ranks are gone ──> exit.json ──> decide: requeue, or leave with an exit code

    told to end                        leave: what Slurm wants it has done; a requeue would bring a
                                       cancelled job back (seen on 22.05)
    finished, asked                    leave, 0
    stopped, or gone after a warning   requeue: time limit, or preemption, whose signal reaches the
                                       ranks before it reaches the batch shell
    not started, unfit nodes           requeue, without these nodes
    crashed                            leave, 1: the supervisor has tried again inside the job;
                                       requeue only if it lacks nodes
    no new checkpoint, K times over    leave, 1

`electra_dist.launch.slurm_job` asks Slurm and acts; here are plain values only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from electra_dist.launch.restarts import FAILED, STOPPED, USER_MISTAKE

FINISHED = 0

MAX_FRUITLESS = 3
"""Ends of a job in a row without a new checkpoint, unless its script says otherwise."""


class Event(Enum):
    """What a batch shell sees."""

    WARNED = "USR1"
    """`--signal=B:USR1@lead`: that much is left of the time limit."""
    TOLD_TO_END = "TERM"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the ranks of this job have ended, as the run folder tells it."""

    reason: str | None
    """Of the newest attempt's exit.json; None: it crashed, or none was claimed."""
    exit_code: int
    """Of that exit.json; of the launcher where there is none."""
    checkpoint: str | None
    """Name of the run's newest complete checkpoint."""
    needs_nodes: bool = False
    """The supervisor would go on, but for the nodes that this allocation has lost."""
    supervisor_said: str | None = None
    """Why it gave up."""
    bad_nodes: tuple[str, ...] = ()
    """Not fit to train: a requeue leaves them out."""
    needs_fit_nodes: bool = False
    """For their sake no rank was started."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What the batch shell knows. Signals may come in any order, and after the ranks' end too."""

    is_warned: bool = False
    is_told_to_end: bool = False
    ending: Ending | None = None
    """None: the ranks are running."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do once the ranks are gone."""

    requeue: bool
    exit_code: int
    """Of the batch script; with a requeue it is Slurm's to say what becomes of it."""
    why: str
    exclude: tuple[str, ...] = ()
    """Nodes that the requeued job must not get."""


def seen(state: State, event: Event | Ending) -> State:
    """The state after one more event; the first ending stays."""
    if isinstance(event, Ending):
        return state if state.ending else replace(state, ending=event)
    if event is Event.WARNED:
        return replace(state, is_warned=True)
    return replace(state, is_told_to_end=True)


def decide(
    state: State,
    earlier_checkpoints: Sequence[str | None],
    *,
    max_fruitless: int,
    job_state: str | None = "RUNNING",
) -> Decision | None:
    """What to do now; None while the ranks are running.

    Args:
        state: what the shell has seen.
        earlier_checkpoints: the newest checkpoint at each earlier end of the run, oldest first.
        max_fruitless: so many ends in a row without a new checkpoint are the last one; 0: never
            requeue, the next job of a chain goes on.
        job_state: what slurmctld says of this job: RUNNING unless it is being ended.
    """
    if state.ending is None:
        return None
    ending = state.ending
    if ending.reason in ("finished", "asked"):
        return _leave(FINISHED, ending.reason)
    if ending.reason == "superseded":
        return _leave(FAILED, "another job has taken over the run folder")
    if ending.exit_code == USER_MISTAKE:
        return _leave(USER_MISTAKE, "the next start would meet the same mistake")
    has_stopped = ending.reason == "stopped"
    code = STOPPED if has_stopped else FAILED
    if state.is_told_to_end:
        return _leave(code, "Slurm told the job to end")
    if job_state not in ("RUNNING", None):
        return _leave(code, f"Slurm is ending the job ({job_state})")
    if has_stopped:
        why = "the time limit is near" if state.is_warned else "the ranks were asked to stop"
    elif state.is_warned:
        why = "the time limit is near, and the ranks ended without a word"
    elif ending.needs_fit_nodes and ending.bad_nodes:
        why = ending.supervisor_said or "nodes are not fit to train"
    elif ending.needs_nodes:
        why = "the allocation has lost nodes"
    else:
        return _leave(FAILED, ending.supervisor_said or "it crashed, and nobody asked it to end")
    if max_fruitless == 0:
        return _leave(code, f"{why}; requeueing is off, the same command resumes the run")
    num_fruitless = fruitless([*earlier_checkpoints, ending.checkpoint])
    if num_fruitless >= max_fruitless:
        newest = ending.checkpoint or "none"
        return _leave(
            FAILED,
            f"no progress: {num_fruitless} jobs in a row have ended without a new checkpoint "
            f"(newest: {newest})",
        )
    return Decision(requeue=True, exit_code=code, why=why, exclude=ending.bad_nodes)


def fruitless(checkpoints: Sequence[str | None]) -> int:
    """How many of the last ends brought no new checkpoint: at the very first any is a new one."""
    number = 0
    for before, after in zip([None, *checkpoints], checkpoints, strict=False):
        number = number + 1 if after == before else 0
    return number


def _leave(exit_code: int, why: str) -> Decision:
    return Decision(requeue=False, exit_code=exit_code, why=why)
