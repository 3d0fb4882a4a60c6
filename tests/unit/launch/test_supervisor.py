"""`supervise` with small programs as ranks: no torch, tens of milliseconds each."""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from electra_dist.launch import restarts
from electra_dist.launch.records import read_lines
from electra_dist.launch.restarts import Limits
from electra_dist.launch.supervisor import LocalLauncher, supervise

PRELUDE = """
import json, os, signal, sys, time
from pathlib import Path
rank, run = int(os.environ["RANK"]), Path(sys.argv[1])
count = run / f"count.{rank}"
life = 1 + (int(count.read_text()) if count.exists() else 0)
count.write_text(str(life))

def claim():
    folder = run / "attempts" / f"{1 + len(list((run / 'attempts').glob('*'))):04d}"
    folder.mkdir(parents=True)
    (folder / "start.json").write_text(json.dumps({"launch": os.environ["ELECTRA_DIST_LAUNCH"]}))
    return folder

def end(folder, reason, code):
    text = json.dumps({"reason": reason, "exit_code": code})
    (folder / "exit.json").write_text(text)
    sys.exit(code)

def save(step):
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
"""


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "FIRST_DELAY_SECONDS", 0.01)


def run(
    folder: Path, program: str, max_restarts: int = 3, again: list[str] | None = None
) -> tuple[int, list[dict[str, Any]]]:
    """Exit code, and the supervisor's own records."""
    command = [sys.executable, "-I", "-S", "-c", PRELUDE + program, str(folder)]
    launcher = LocalLauncher(1, os.environ, folder)
    code = supervise(
        launcher, folder, Limits(max_restarts=max_restarts), command, [*command, *(again or [])]
    )
    return code, read_lines(folder / "supervisor.jsonl")


def soon(condition: Callable[[], bool], act: Callable[[], None]) -> None:
    def watch() -> None:
        while not condition():
            time.sleep(0.01)
        act()

    threading.Thread(target=watch, daemon=True).start()


def test_a_crash_is_restarted_and_the_end_is_the_last_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = """
folder = claim()
if life < 3:
    save(life * 8)
    os.kill(os.getpid(), signal.SIGKILL)
end(folder, "finished", 0)
"""
    code, records = run(tmp_path, program, max_restarts=1)
    assert code == 0
    assert [(r["attempt"], r["reason"], r["action"]) for r in records] == [
        (1, None, "restart"),
        (2, None, "restart"),
        (3, "finished", "stop"),
    ]
    assert records[0]["ended"] <= records[1]["ended"]
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said == [
        f"attempt {n} crashed; restart {n} in 0.01 s "
        "(1 in a row without a new checkpoint are allowed)"
        for n in (1, 2)
    ]


def test_crashes_without_a_new_checkpoint_do_not_go_on_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, records = run(tmp_path, "claim(); sys.exit(1)", max_restarts=2)
    assert code == 1
    assert [r["action"] for r in records] == ["restart", "restart", "stop"]
    why = "crashed: 3 attempts in a row have ended without a new checkpoint"
    assert records[-1]["why"] == why
    assert caplog.records[-1].getMessage() == f"not restarted: {why}"


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ('end(claim(), "finished", 0)', 0),
        ('end(claim(), "asked", 0)', 0),
        ('end(claim(), "stopped", 75)', 75),
        ('end(claim(), "failed", 2)', 2),
        ('end(claim(), "superseded", 1)', 1),
        ("sys.exit(2)", 2),
    ],
)
def test_what_is_never_restarted(tmp_path: Path, program: str, code: int) -> None:
    assert run(tmp_path, program)[0] == code
    assert (tmp_path / "count.0").read_text() == "1"


def test_a_mistake_before_there_is_a_run_folder_makes_none(tmp_path: Path) -> None:
    launcher = LocalLauncher(1, os.environ, tmp_path / "run")
    command = [sys.executable, "-c", "import sys; sys.exit(2)"]
    assert supervise(launcher, tmp_path / "run", Limits(max_restarts=3), command) == 2
    assert not (tmp_path / "run").exists()


def test_a_run_that_another_has_taken_over_is_left_alone(tmp_path: Path) -> None:
    """Nothing is written either: the run folder belongs to the later attempt."""
    program = 'claim(); (run / "attempts" / "0002").mkdir(); sys.exit(1)'
    code, records = run(tmp_path, program)
    assert (code, records) == (1, [])
    assert (tmp_path / "count.0").read_text() == "1"


def test_a_crash_after_a_signal_is_not_restarted(tmp_path: Path) -> None:
    program = 'claim(); (run / "here").touch(); time.sleep(60)'
    soon((tmp_path / "here").exists, lambda: os.kill(os.getpid(), signal.SIGTERM))
    code, records = run(tmp_path, program)
    assert code == 1
    assert records[-1]["why"] == "crashed after SIGTERM had asked it to stop"


def test_signals_and_stop_files_end_the_wait_for_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "FIRST_DELAY_SECONDS", 60.0)
    waits = lambda folder: (folder / "supervisor.jsonl").exists  # noqa: E731
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    soon(waits(first), lambda: os.kill(os.getpid(), signal.SIGUSR1))
    code, records = run(first, "claim(); sys.exit(1)")
    assert (code, records[-1]["why"]) == (1, "SIGUSR1 came before the restart")
    soon(waits(second), (second / "STOP").touch)
    code, records = run(second, "claim(); sys.exit(1)")
    assert (code, records[-1]["why"]) == (1, "electra-dist stop came before the restart")
    assert [r["action"] for r in records] == ["restart", "stop"]


def test_once_the_run_has_a_config_of_its_own_a_restart_reads_that(tmp_path: Path) -> None:
    """The first attempt crashes before it has written one."""
    program = """
folder = claim()
(run / f"words.{life}").write_text(json.dumps(sys.argv[2:]))
if life == 2:
    (run / "config.json").write_text("{}")
if life < 4:
    sys.exit(1)
end(folder, "finished", 0)
"""
    (tmp_path / "config.json").write_text("an older one")
    assert run(tmp_path, program, again=["again"])[0] == 0
    words = [json.loads((tmp_path / f"words.{life}").read_text()) for life in (1, 2, 3, 4)]
    assert words == [[], [], ["again"], ["again"]]


def test_ranks_learn_when_they_were_launched(tmp_path: Path) -> None:
    program = '(run / "at").write_text(os.environ["ELECTRA_DIST_LAUNCHED"]); sys.exit(2)'
    before = time.time()
    run(tmp_path, program)
    assert before <= float((tmp_path / "at").read_text()) <= time.time()
