"""Several ranks of one command on this machine: what `--nproc N` does.

    terminal, Slurm ── signal ──> run_ranks ── the same signal ──> rank 0 .. N-1
                                     │  a rank dies: grace, SIGTERM, SIGKILL for the others
                                     └─ all are gone: one exit code, read from exit.json

Each rank gets a session of its own, so that Ctrl-C reaches it once, through here, and not also
from the terminal. A launcher that is killed by SIGKILL can't tidy up: its ranks then get SIGKILL
from the kernel (PR_SET_PDEATHSIG). They could poll their parent instead, but a rank that hangs, the
very case, does not poll. The death signal is set by a tiny program between fork and the command's
exec, and not by `preexec_fn`, which may deadlock when the calling process has threads. What it
kills is safe to kill: a checkpoint exists whole or not at all.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType

from electra_dist.config import variables
from electra_dist.launch.records import attempt_folder, newest_attempt, read_json

log = logging.getLogger(__name__)

STOPPED = 75
"""Exit code of a run that saved and stopped on request."""

USER_MISTAKE = 2
"""Exit code of a rank that its user has to put right; every rank finds the same mistake."""

FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGINT: signal.SIGINT,
    # The terminal is closed: save and stop, as far as the ranks are concerned.
    signal.SIGHUP: signal.SIGTERM,
}
"""Signals of the launcher and what its ranks get for them."""

GRACE_SECONDS, KILL_SECONDS = 10.0, 15.0
"""What `run_ranks` allows unless told otherwise: for the others to say who is missing, to save."""

POLL_SECONDS = 0.05

_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG; it outlives exec
if os.getppid() != int(sys.argv[1]):            # the launcher died before prctl
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def run_ranks(
    command: list[str],
    num_ranks: int,
    environ: Mapping[str, str],
    run_folder: Path,
    *,
    grace_seconds: float = GRACE_SECONDS,
    kill_seconds: float = KILL_SECONDS,
    signals: "Signals | None" = None,
) -> int:
    """Run `command` as `num_ranks` ranks, forward signals to them, and return when all are gone.

    Call it in the main thread: it replaces the handlers of the forwarded signals while it runs.

    Args:
        command: program and arguments of a rank, the same for each.
        num_ranks: how many.
        environ: their environment, already without the variables of other launchers
            (`runtime.world.without_launcher_variables`); OMP_NUM_THREADS is left as it is.
        run_folder: where this attempt's exit.json will say how it ended.
        grace_seconds: after a rank died with an error, how long the others may find out by
            themselves, and log who is missing, before they get SIGTERM.
        kill_seconds: after that SIGTERM, how long until SIGKILL.
        signals: those of a caller that has replaced the handlers itself.

    Returns:
        0 if every rank ended with 0; 75 if this attempt's exit.json says stopped, state saved;
        2 if rank 0 ended with 2 (the user's mistake); else 1.
    """
    first_attempt = newest_attempt(run_folder) + 1
    port = free_port()
    environs = [
        {**environ, **rank_variables(rank, num_ranks, port=port)} for rank in range(num_ranks)
    ]
    codes = run_processes(
        command, environs, grace_seconds=grace_seconds, kill_seconds=kill_seconds, signals=signals
    )
    if not any(codes):
        return 0
    ended = read_json(attempt_folder(run_folder, first_attempt) / "exit.json")
    if (ended.get("reason"), ended.get("exit_code")) == ("stopped", STOPPED):
        return STOPPED
    if codes[0] == USER_MISTAKE:
        return USER_MISTAKE
    if USER_MISTAKE in codes:  # only rank 0 speaks of mistakes, and it made none
        log.error("rank %d %s", codes.index(USER_MISTAKE), _in_words(USER_MISTAKE))
    return 1


def run_processes(
    command: list[str],
    environs: Sequence[Mapping[str, str]],
    *,
    grace_seconds: float,
    kill_seconds: float,
    signals: "Signals | None" = None,
    is_lost: Callable[[], bool] = lambda: False,
    program: str | None = None,
) -> list[int]:
    """Run `command` once in each environment, forward signals, and return the exit codes.

    Args:
        command: program and arguments.
        environs: of each process.
        grace_seconds: as in `run_ranks`.
        kill_seconds: as in `run_ranks`.
        signals: as in `run_ranks`.
        is_lost: whether the processes, though they live, have lost what they need.
        program: what they are, for the log; None: ranks.
    """
    return run_commands(
        [command] * len(environs),
        environs,
        grace_seconds=grace_seconds,
        kill_seconds=kill_seconds,
        signals=signals,
        is_lost=is_lost,
        program=program,
    )


def run_commands(
    commands: Sequence[list[str]],
    environs: Sequence[Mapping[str, str]],
    *,
    grace_seconds: float,
    kill_seconds: float,
    signals: "Signals | None" = None,
    is_lost: Callable[[], bool] = lambda: False,
    program: str | None = None,
) -> list[int]:
    """`run_processes` with a command for each environment."""
    processes: list[subprocess.Popen[bytes]] = []
    with nullcontext(signals) if signals is not None else forwarded_signals() as received:
        try:
            launched = {variables.LAUNCHED: repr(time.time())}
            for command, environ in zip(commands, environs, strict=True):
                processes.append(_start(command, {**environ, **launched}))
            _wait(processes, received.pending, grace_seconds, kill_seconds, is_lost, program)
        finally:
            for process in processes:
                if process.poll() is None:
                    _kill_session(process)
    return [process.wait() for process in processes]


def free_port() -> int:
    """A TCP port of the loopback interface that nobody used a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def rank_variables(
    local_rank: int,
    local_world_size: int,
    *,
    port: int,
    address: str = "127.0.0.1",
    node: int = 0,
    num_nodes: int = 1,
) -> dict[str, str]:
    """Torchrun's variables of a rank, where every node has `local_world_size` of them."""
    return {
        "RANK": str(node * local_world_size + local_rank),
        "WORLD_SIZE": str(num_nodes * local_world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def _start(command: list[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # -I -S: no site-packages, no user's folder; the interpreter starts in 10 ms and execs at once.
    shim = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
    return subprocess.Popen([*shim, *command], env=dict(environ), start_new_session=True)


class Signals:
    """What a launcher has received."""

    def __init__(self) -> None:
        self.pending: list[signal.Signals] = []
        """Not yet handed on."""
        self.first: signal.Signals | None = None


@contextmanager
def forwarded_signals() -> Iterator[Signals]:
    """Collect forwarded signals while the block runs; a signal that is ignored (nohup) stays so."""
    received = Signals()

    def note(number: int, _frame: FrameType | None) -> None:
        received.first = received.first or signal.Signals(number)
        received.pending.append(signal.Signals(number))

    old = {s: signal.getsignal(s) for s in FORWARDED}
    for number, handler in old.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in old.items():
            if handler is not None:  # None is a handler that was not set from Python.
                signal.signal(number, handler)


def _wait(
    ranks: list[subprocess.Popen[bytes]],
    received: list[signal.Signals],
    grace_seconds: float,
    kill_seconds: float,
    is_lost: Callable[[], bool],
    program: str | None,
) -> None:
    """Return when all ranks are gone, or when those that outlive a dead one must be killed."""
    died_at: float | None = None
    was_terminated = False
    alive = list(ranks)
    while alive:
        for process in [p for p in alive if p.poll() is not None]:
            # At once, while nobody else can have got its number: data workers it left behind.
            _kill_session(process)
            alive.remove(process)
        while received:
            _signal(ranks, FORWARDED[received.pop(0)])
        now = time.monotonic()
        if died_at is None:
            # 0 and 75 are orderly ends: the other ranks are about to leave too.
            dead = [r for r, p in enumerate(ranks) if p.returncode not in (None, 0, STOPPED)]
            if dead:
                died_at = now
                code = ranks[dead[0]].returncode
                if code != USER_MISTAKE:  # that one rank 0 says in a sentence of its own
                    others = "; ending the others" if len(ranks) > 1 else ""
                    log.error("%s %s%s", program or f"rank {dead[0]}", _in_words(code), others)
            elif is_lost():
                died_at = now
        elif now > died_at + grace_seconds + kill_seconds:
            return
        elif now > died_at + grace_seconds and not was_terminated:
            was_terminated = True
            _signal(ranks, signal.SIGTERM)
        time.sleep(POLL_SECONDS)


def _in_words(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"


def _signal(ranks: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in ranks:
        process.send_signal(number)  # Nothing if it has been waited for.


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a rank, if it lives, and to its data workers: they share its process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
