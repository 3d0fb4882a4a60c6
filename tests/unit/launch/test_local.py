"""`run_ranks` with small programs as ranks: no torch, tens of milliseconds each."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from electra_dist.launch.local import run_ranks

PRELUDE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
rank, run = int(os.environ["RANK"]), Path(sys.argv[1])

def write_exit(reason, code, number="0001"):
    folder = run / "attempts" / number
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "exit.json").write_text(json.dumps({"reason": reason, "exit_code": code}))

def here(what="here"):
    (run / f"{what}.{rank}").write_text(str(os.getpid()))

def wait_for(*names):
    while not all((run / name).exists() for name in names):
        time.sleep(0.01)

def on(*numbers):
    def handle(number, frame):
        with (run / f"signals.{rank}").open("a") as file:
            file.write(signal.Signals(number).name + " ")
    for number in numbers:
        signal.signal(number, handle)
"""


def command(run: Path, program: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", PRELUDE + program, str(run)]


def ranks(
    run: Path, program: str, num_ranks: int = 2, grace: float = 0.3, kill: float = 0.3
) -> int:
    return run_ranks(
        command(run, program), num_ranks, os.environ, run, grace_seconds=grace, kill_seconds=kill
    )


def when(run: Path, names: list[str], act: Callable[[], None]) -> None:
    """Do `act` in a thread as soon as the files are there."""

    def watch() -> None:
        while not all((run / name).exists() for name in names):
            time.sleep(0.01)
        act()

    threading.Thread(target=watch, daemon=True).start()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone_soon(*pids: int) -> bool:
    for _ in range(500):
        if not any(is_alive(pid) for pid in pids):
            return True
        time.sleep(0.01)
    return False


def test_ranks_know_who_they_are_and_get_the_rest_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    program = 'here("x"); (run / f"env.{rank}").write_text(json.dumps(dict(os.environ)))'
    assert ranks(tmp_path, program, num_ranks=3) == 0
    environs = [json.loads((tmp_path / f"env.{rank}").read_text()) for rank in range(3)]
    for rank, environ in enumerate(environs):
        assert [environ[k] for k in ("RANK", "LOCAL_RANK")] == [str(rank)] * 2
        assert [environ[k] for k in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")] == ["3"] * 2
        assert environ["MASTER_ADDR"] == "127.0.0.1"
        assert environ["OMP_NUM_THREADS"] == "7"
    assert len({environ["MASTER_PORT"] for environ in environs}) == 1


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(2)", 2),
        ("sys.exit(2 if rank == 0 else 1)", 2),
        ("sys.exit(2 if rank == 1 else 0)", 1),
        ("sys.exit(75)", 1),
        ('write_exit("stopped", 75); sys.exit(75)', 75),
        ('write_exit("stopped", 75); os.kill(os.getpid(), 9)', 75),
        ('write_exit("failed", 1); sys.exit(75)', 1),
        ('write_exit("finished", 0); sys.exit(0)', 0),
    ],
)
def test_the_exit_code(tmp_path: Path, program: str, code: int) -> None:
    assert ranks(tmp_path, program) == code


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("sys.exit(2)", []),  # rank 0 has said it in a sentence of its own
        ("sys.exit(2 if rank == 1 else 0)", ["rank 1 ended with exit code 2"]),
        ("sys.exit(1 if rank == 1 else 0)", ["rank 1 ended with exit code 1; ending the others"]),
    ],
)
def test_what_the_launcher_says_of_a_rank_that_failed(
    tmp_path: Path, program: str, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    ranks(tmp_path, program)
    assert [record.getMessage() for record in caplog.records] == said


def test_the_exit_json_of_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "attempts" / "0001"
    folder.mkdir(parents=True)
    (folder / "exit.json").write_text('{"reason": "stopped", "exit_code": 75}')
    assert ranks(tmp_path, "sys.exit(1)") == 1
    assert ranks(tmp_path, 'write_exit("stopped", 75, "0002"); sys.exit(75)') == 75


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGUSR1, "SIGUSR1"),
        (signal.SIGINT, "SIGINT"),
        (signal.SIGHUP, "SIGTERM"),
    ],
)
def test_a_signal_reaches_every_rank_once(tmp_path: Path, sent: signal.Signals, got: str) -> None:
    program = """
on(signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
here()
wait_for("signals.0", "signals.1")
time.sleep(0.1)
write_exit("stopped", 75)
sys.exit(75)
"""

    def before(*_: object) -> None:
        """Of the launcher's caller. Under nohup, or behind `&`, a signal would be ignored."""

    old = signal.signal(sent, before)
    try:
        when(tmp_path, ["here.0", "here.1"], lambda: os.kill(os.getpid(), sent))
        assert ranks(tmp_path, program) == 75
        assert signal.getsignal(sent) is before
    finally:
        signal.signal(sent, old)
    assert [(tmp_path / f"signals.{rank}").read_text().split() for rank in (0, 1)] == [[got]] * 2


def test_ranks_are_out_of_reach_of_the_terminal(tmp_path: Path) -> None:
    program = '(run / f"session.{rank}").write_text(f"{os.getsid(0)} {os.getpid()}")'
    assert ranks(tmp_path, program) == 0
    for rank in (0, 1):
        session, pid = (tmp_path / f"session.{rank}").read_text().split()
        assert session == pid


def test_after_a_death_the_others_get_their_grace_then_sigterm_then_sigkill(tmp_path: Path) -> None:
    program = """
if rank == 1:
    wait_for("here.0", "here.2")
    sys.exit(1)
if rank == 0:
    on(signal.SIGTERM)
here()
if rank == 2:
    time.sleep(0.1)
    here("noticed_by_itself")
    sys.exit(1)
while True:
    time.sleep(1)
"""
    assert ranks(tmp_path, program, num_ranks=3) == 1
    assert (tmp_path / "noticed_by_itself.2").exists()
    assert (tmp_path / "signals.0").read_text().split() == ["SIGTERM"]
    assert not is_alive(int((tmp_path / "here.0").read_text()))


def test_a_killed_rank_ends_the_run_and_its_data_workers(tmp_path: Path) -> None:
    program = """
if rank == 1:
    worker = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
    (run / "worker").write_text(str(worker.pid))
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    assert ranks(tmp_path, program) == 1
    assert gone_soon(int((tmp_path / "worker").read_text()))


def test_ranks_do_not_outlive_a_launcher_that_is_killed(tmp_path: Path) -> None:
    program = "on(signal.SIGTERM, signal.SIGHUP); here(); time.sleep(60)"
    launcher = f"""
import os
from pathlib import Path
from electra_dist.launch.local import run_ranks
run_ranks({command(tmp_path, program)!r}, 2, os.environ, Path({str(tmp_path)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", launcher])
    names = ["here.0", "here.1"]
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in names):
        assert process.poll() is None
        time.sleep(0.01)
    pids = [int((tmp_path / name).read_text()) for name in names]
    assert all(is_alive(pid) for pid in pids)
    process.kill()
    process.wait()
    assert gone_soon(*pids)
