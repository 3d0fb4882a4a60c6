"""Pretraining as a submitit job: what each of its tasks runs, by submitit's own protocol.

    Slurm ── USR2 (time limit near), TERM ──> task k: submitit's process ──> its child: rank k
                                                │
        task 0, at USR2 or when its rank has left by itself: checkpoint()
              ── USR1 ──> rank 0 ── the step's all-reduce ──> every rank saves, and leaves
              ── exit.json, Slurm's state of the job ──> DelayedSubmission: submitit requeues
                                                         None: it does not

submitit calls `checkpoint` in task 0 only, so stopping at one step is the ranks' own affair: one
that is told tells all. Whether the job goes on is decided as for `submit slurm` (`launch.requeue`).

submitit pickles its callable into RUN/submitit, and loads it in each task. That is its transport
and the one pickle that this project makes: an object of a few strings.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from electra_dist.config import variables
from electra_dist.config.slurm_commands import Answer, ask_slurm
from electra_dist.launch.local import (
    STOPPED,
    Signals,
    forwarded_signals,
    free_port,
    rank_variables,
    run_processes,
)
from electra_dist.launch.records import newest_attempt, read_lines
from electra_dist.launch.requeue import MAX_FRUITLESS, Decision
from electra_dist.launch.slurm_job import Job, end_job, ending_of

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
GRACE_SECONDS = KILL_SECONDS = 10.0
"""Of a single child they say little: there is nobody else to wait for."""


class Pretraining:
    """The callable of a submitit job: `executor.submit(Pretraining([...], RUN))`.

    Args:
        words: of `electra-dist pretrain`, without --out: a config's path and overrides.
        run: RUN, on a disk that all nodes see.
        max_fruitless: so many ends of the job in a row without a new checkpoint are the last one;
            0: never requeue.
    """

    def __init__(
        self, words: Sequence[str], run: str | Path, *, max_fruitless: int = MAX_FRUITLESS
    ) -> None:
        self.words = list(words)
        self.run = str(run)
        self.max_fruitless = max_fruitless
        self.port = free_port()
        """Where the ranks of a LocalExecutor meet; Slurm's have one of their own."""
        self._task: _Task | None = None

    def __call__(self) -> str:
        """Be one rank, to its end; returns why it ended, once the run is to go no further.

        Raises:
            RuntimeError: it has failed: submitit makes a FailedJobError of it.
        """
        self._task = self._task or _Task(self)
        return self._task.run()

    def checkpoint(self) -> DelayedSubmission | None:
        """Have all ranks save and leave; what is to be run then, None if nothing."""
        from submitit.helpers import DelayedSubmission

        self._task = self._task or _Task(self)  # USR2 may come before there is one
        if not self._task.end(is_warned=True).requeue:
            return None
        again = Pretraining(self.words, self.run, max_fruitless=self.max_fruitless)
        return DelayedSubmission(again)


class _Task:
    """One task of a running job, and its child."""

    def __init__(self, job: Pretraining) -> None:
        from submitit import JobEnvironment

        self._job = job
        self._run = Path(job.run)
        self._environment = JobEnvironment()
        self._signal = signal.Signals["SIG" + JobEnvironment.USR_SIG]
        self._newest_before = newest_attempt(self._run)
        self._code = 1
        self._signals = Signals()
        self._decision: Decision | None = None
        self._thread = threading.Thread(target=self._train, daemon=True)

    def run(self) -> str:
        from submitit.core.utils import UncompletedJobError

        with forwarded_signals() as self._signals:
            self._thread.start()
            try:
                self._wait()
                if self._environment.global_rank:
                    return self._other_rank()
                if self.end(is_warned=False).requeue:
                    # Through submitit's own door: its handler calls `checkpoint` and requeues.
                    signal.raise_signal(self._signal)
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {self._signal})
            except UncompletedJobError:  # `checkpoint` has said that nothing is to be run
                log.debug("submitit does not requeue the job")
        assert self._decision is not None
        if self._decision.exit_code:
            raise RuntimeError(f"{self._run}: {self._decision.why}")
        return self._decision.why

    def end(self, *, is_warned: bool) -> Decision:
        """Wait until the rank is gone, ask it to leave if it was warned, and decide, once."""
        # submitit's handler is not made for a second signal while it is at work.
        signal.pthread_sigmask(signal.SIG_BLOCK, {self._signal})
        if self._decision is None:
            if self._thread.is_alive():
                self._signals.pending.append(signal.SIGUSR1)
            self._wait()
            self._decision = self._decide(is_warned)
        return self._decision

    def _wait(self) -> None:
        while self._thread.is_alive():
            self._thread.join(POLL_SECONDS)

    def _train(self) -> None:
        """In a thread, so that submitit's handlers, which run in the main thread, can wait."""
        # For the child, which inherits it: USR2 goes to the whole step, and would kill a rank.
        signal.pthread_sigmask(signal.SIG_BLOCK, {self._signal})
        program = shlex.split(os.environ.get(variables.RANK_COMMAND, ""))
        program = program or [sys.executable, "-m", "electra_dist"]
        (self._code,) = run_processes(
            [*program, "pretrain", *self._job.words, "--out", self._job.run],
            [{**os.environ, **variables_of(self._environment, self._job.port)}],
            grace_seconds=GRACE_SECONDS,
            kill_seconds=KILL_SECONDS,
            signals=self._signals,
            program=f"rank {self._environment.global_rank}",
        )

    def _other_rank(self) -> str:
        """Task 0 speaks for all; a failed one says so, for submitit's log of it."""
        # Python takes its handlers down before the process ends: a USR2 that comes then would kill
        # it, and srun would fail a job whose run is finished (seen).
        signal.pthread_sigmask(signal.SIG_BLOCK, {self._signal})
        if self._code not in (0, STOPPED):
            raise RuntimeError(f"the rank ended with {self._code}; see {self._run}/attempts")
        return "stopped" if self._code else "finished"

    def _decide(self, is_warned: bool) -> Decision:
        job_id = self._environment.job_id
        is_slurm = self._environment.cluster == "slurm"
        # Slurm's TERM may be scancel or a preemption: the state of the job tells which.
        is_told = not is_slurm and self._signals.first in (signal.SIGTERM, signal.SIGINT)
        restarts = os.environ.get("SLURM_RESTART_COUNT") if is_slurm else _ends(self._run, job_id)
        return end_job(
            self._run,
            Job(job_id=job_id, restart_count=int(restarts or 0)),
            ending_of(self._run, self._newest_before, self._code),
            [*(["USR1"] if is_warned else []), *(["TERM"] if is_told else [])],
            max_fruitless=self._job.max_fruitless,
            ask=ask_slurm if is_slurm else _always_running,
            requeue=_left_to_submitit,
        )


def variables_of(environment: Any, port: int) -> Mapping[str, str]:
    """What a rank needs beyond the variables of its task: nothing under Slurm, whose srun names it.

    Args:
        environment: submitit's JobEnvironment.
        port: where ranks of this machine meet.
    """
    if environment.cluster == "slurm":
        return {}
    # Off Slurm submitit runs all tasks on one machine.
    return rank_variables(environment.global_rank, environment.num_tasks, port=port)


def _ends(run: Path, job_id: str) -> int:
    return sum(line.get("job") == job_id for line in read_lines(run / "requeue.jsonl"))


def _always_running(_: Sequence[str]) -> Answer:
    return Answer(code=0, words="JobState=RUNNING")


def _left_to_submitit(_: str) -> Answer:
    return Answer(code=0, words="")
