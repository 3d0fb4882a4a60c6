"""Keeps a run alive: starts its ranks, and starts them again after a crash. No torch.

    launch ──> attempts/NNNN ──> exit.json: finished, asked, stopped ──> leave with 0, 0, 75
                                 a mistake of the user, superseded   ──> leave with 2, 1
                                 failed, or none: a crash            ──> wait, launch again

It decides on exit.json and on the names of checkpoints alone (`restarts.next_action`), and writes
what it did to RUN/supervisor.jsonl. events.jsonl stays with rank 0 of the newest attempt.
"""

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from electra_dist.config import variables
from electra_dist.launch.local import Signals, forwarded_signals, run_ranks
from electra_dist.launch.records import (
    append_record,
    attempt_folder,
    attempt_folders,
    complete_checkpoints,
    newest_attempt,
    read_json,
)
from electra_dist.launch.restarts import Ended, Limits, Restart, Stop, next_action

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2


class Launcher(Protocol):
    """Starts all ranks of a run once."""

    world_size: int

    def look(self) -> int:
        """How many ranks can be started now; the next launch starts so many."""

    def run(self, command: list[str], variables: Mapping[str, str], signals: Signals) -> int:
        """Run `command` as every rank; returns an exit code when all are gone."""


class LocalLauncher:
    """Ranks of this machine."""

    def __init__(self, num_ranks: int, environ: Mapping[str, str], run_folder: Path) -> None:
        self.world_size = num_ranks
        self._environ, self._run_folder = environ, run_folder

    def look(self) -> int:
        """As many as before."""
        return self.world_size

    def run(self, command: list[str], variables: Mapping[str, str], signals: Signals) -> int:
        """See `run_ranks`."""
        environ = {**self._environ, **variables}
        return run_ranks(command, self.world_size, environ, self._run_folder, signals=signals)


def supervise(
    launcher: Launcher,
    run_folder: Path,
    limits: Limits,
    command: list[str],
    resume_command: list[str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Launch until there is nothing left to do; returns the exit code of `electra-dist pretrain`.

    Call it in the main thread: it replaces the handlers of the forwarded signals while it runs.

    Args:
        launcher: starts the ranks.
        run_folder: RUN.
        limits: when to give up.
        command: a rank's program and arguments.
        resume_command: the same once the run has written its config.json: a config file that its
            user edits in the meantime must not end the run.
        clock: for tests.
    """
    history: list[Ended] = []
    has_config = False
    with forwarded_signals() as signals:
        while True:
            word = uuid.uuid4().hex
            before = _Before(run_folder)
            words = resume_command if has_config and resume_command else command
            code = launcher.run(words, {variables.LAUNCH: word}, signals)
            has_config = has_config or _stamp(run_folder / "config.json") != before.config
            ended_at = time.time()
            ended = before.look_again(word, code, signals, launcher.world_size)
            history.append(ended)
            action = next_action(history, limits, launcher.look())
            _record(run_folder, ended, action, word, ended_at)
            if isinstance(action, Restart):
                _say(ended, action, limits, history)
                action = _wait(action, signals, run_folder, clock)
                if isinstance(action, Stop):
                    _record(run_folder, ended, action, word, ended_at)
            if isinstance(action, Stop):
                if action.exit_code == 1:
                    log.error("not restarted: %s", action.why)
                return action.exit_code


class _Before:
    """The run folder as it was before a launch."""

    def __init__(self, run_folder: Path) -> None:
        self._run = run_folder
        self._attempt = newest_attempt(run_folder)
        self._checkpoint = complete_checkpoints(run_folder)[-1:]
        self.config = _stamp(run_folder / "config.json")

    def look_again(self, word: str, code: int, signals: Signals, world_size: int) -> Ended:
        """How the launch ended that was given `word`."""
        attempt = self._attempt_of(word)
        ended = read_json(attempt_folder(self._run, attempt) / "exit.json") if attempt else {}
        stop_asked = signals.first.name if signals.first else None
        if stop_asked is None and attempt and (self._run / "STOP").exists():
            stop_asked = "electra-dist stop"
        newest = newest_attempt(self._run)
        exit_code = ended.get("exit_code")
        return Ended(
            attempt=attempt,
            reason=ended.get("reason"),
            exit_code=exit_code if isinstance(exit_code, int) else code,
            has_new_checkpoint=complete_checkpoints(self._run)[-1:] > self._checkpoint,
            is_superseded=newest > (attempt or self._attempt),
            stop_asked=stop_asked,
            world_size=world_size,
        )

    def _attempt_of(self, word: str) -> int | None:
        new = [f for f in attempt_folders(self._run) if int(f.name) > self._attempt]
        for folder in new:
            start = read_json(folder / "start.json")
            # Without start.json (a full disk) the only new attempt is ours.
            if start.get("launch") == word or (not start and len(new) == 1):
                return int(folder.name)
        return None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _say(ended: Ended, action: Restart, limits: Limits, history: list[Ended]) -> None:
    name = f"attempt {ended.attempt}" if ended.attempt else "the launch"
    size = "" if action.world_size == ended.world_size else f" on {action.world_size} ranks"
    log.warning(
        "%s %s; restart %d%s in %g s (%d in a row without a new checkpoint are allowed)",
        *(name, action.why, len(history), size, action.delay_seconds, limits.max_restarts),
    )


def _wait(
    action: Restart, signals: Signals, run_folder: Path, clock: Callable[[], float]
) -> Restart | Stop:
    """Wait before a restart; a signal, `electra-dist stop` or another's attempt ends that."""
    newest = newest_attempt(run_folder)
    until = clock() + action.delay_seconds
    while clock() < until:
        if signals.first is not None:
            return Stop(exit_code=1, why=f"{signals.first.name} came before the restart")
        if (run_folder / "STOP").exists():
            return Stop(exit_code=1, why="electra-dist stop came before the restart")
        time.sleep(min(POLL_SECONDS, max(0.0, until - clock())))
    if newest_attempt(run_folder) > newest:
        return Stop(exit_code=1, why="a later attempt has taken over the run folder")
    return action


def _record(
    run_folder: Path, ended: Ended, action: Restart | Stop, word: str, ended_at: float
) -> None:
    """A line of supervisor.jsonl; only by the supervisor of the newest attempt, as all writing."""
    newest = newest_attempt(run_folder)
    is_ours = ended.attempt in (None, newest) and not ended.is_superseded
    if not newest or not is_ours:
        return
    record = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "ended": round(ended_at, 3),
        "launch": word,
        "attempt": ended.attempt,
        "reason": ended.reason,
        "exit_code": ended.exit_code,
        "action": "restart" if isinstance(action, Restart) else "stop",
        "why": action.why,
    }
    if isinstance(action, Restart):
        record |= {"delay_seconds": action.delay_seconds, "world_size": action.world_size}
    else:
        record |= {"exits_with": action.exit_code, "needs_nodes": action.needs_nodes}
    try:
        append_record(run_folder / "supervisor.jsonl", record)
    except OSError as error:
        log.error("%s could not be written (%s)", run_folder / "supervisor.jsonl", error)
