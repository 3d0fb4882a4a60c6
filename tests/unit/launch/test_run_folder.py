import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from electra_dist.errors import UserError
from electra_dist.launch.run_folder import as_json, render, run_status, span

NOW = 1_800_000_000.0


def write(path: Path, text: str, age: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (NOW - age, NOW - age))


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def settle(run: Path, age: float) -> None:
    """Give everything in the run folder one age."""
    for path in run.rglob("*"):
        os.utime(path, (NOW - age, NOW - age))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in its second attempt, at step 430 of 1000, that wrote its last metrics 12 s ago."""
    run = tmp_path / "small-1"
    config = {"recipe": "small", "schedule": {"num_steps": 1000, "stop_step": None}}
    write(run / "config.json", json.dumps(config), 5000)
    timing = {"step_seconds": 0.5, "tokens_per_s": 9000.0}
    metrics = lines(
        {"step": 400, "loss": 42.0, "eval": {"auc": 0.61}, "timing": timing},
        {"step": 430, "loss": 41.5, "lr": 0.0005, "timing": timing},
    )
    write(run / "metrics.jsonl", metrics, 12)
    events = lines(*({"time": "T", "event": "save", "step": s} for s in range(9)))
    write(run / "events.jsonl", events, 100)
    ended = {"reason": "stopped", "step": 200, "checkpoint": "step_00000200", "exit_code": 75}
    write(run / "attempts" / "0001" / "exit.json", json.dumps(ended), 4000)
    write(run / "attempts" / "0002" / "rank_00000.log", "", 30)
    for name in ("step_00000200", "step_00000400", "step_00000300.bad", "step_00000420.tmp-2"):
        write(run / "checkpoints" / name / "manifest.json", "{}", 300)
    write(run / "checkpoints" / "step_00000430" / "state.json", "{}", 300)
    for folder in ("attempts", "attempts/0001", "attempts/0002", "checkpoints"):
        os.utime(run / folder, (NOW - 300, NOW - 300))
    return run


def test_a_running_run(run: Path) -> None:
    status = run_status(run, NOW)
    assert (status.state, status.is_running, status.silent_seconds) == ("running", True, 12.0)
    assert (status.name, status.recipe) == ("small-1", "small")
    assert (status.step, status.num_steps) == (430, 1000)
    assert status.metrics == {"step": 430, "loss": 41.5, "lr": 0.0005}
    assert (status.tokens_per_s, status.eta_seconds) == (9000.0, 285.0)
    assert status.held_out == {"step": 400, "auc": 0.61}
    assert status.checkpoints == ["step_00000200", "step_00000400"]
    assert [(a.number, a.reason, a.exit_code) for a in status.attempts] == [
        (1, "stopped", 75),
        (2, None, None),
    ]
    assert [event["step"] for event in status.events] == [4, 5, 6, 7, 8]


def test_the_text_says_all_of_it(run: Path) -> None:
    text = render(run_status(run, NOW))
    for words in (
        "small-1 (recipe small)",
        "running, last sign of life 12 s ago",
        "430 of 1,000 (43.0 %)",
        "loss 41.5",
        "9,000 tokens/s, ETA 4 min",
        "at 400: auc 0.61",
        "step_00000400, 2 complete",
        "attempt 1   stopped at step 200, exit code 75",
        "attempt 2   running",
        "T  save  step=8",
    ):
        assert words in text


def test_ends_of_slurm_jobs_are_told(run: Path) -> None:
    ends = [
        {"time": "T", "job": "17", "action": "requeue", "why": "the time limit is near"},
        {"time": "U", "job": "17", "action": "leave", "why": "finished"},
    ]
    write(run / "requeue.jsonl", lines(*ends), 30)
    status = run_status(run, NOW)
    assert status.jobs == ends
    rows = [line for line in render(status).splitlines() if line.startswith("job 17")]
    assert rows[0].endswith("requeued: the time limit is near (T)")
    assert rows[1].endswith("ended: finished (U)")


def test_the_json_is_plain_and_says_whether_it_runs(run: Path) -> None:
    value = json.loads(json.dumps(as_json(run_status(run, NOW)), allow_nan=False))
    assert (value["step"], value["is_running"], value["attempts"][0]["reason"]) == (
        430,
        True,
        "stopped",
    )


def test_half_written_lines_and_files_are_passed_over(run: Path) -> None:
    before = run_status(run, NOW)
    for name in ("metrics.jsonl", "events.jsonl"):
        whole = (run / name).read_text()
        write(run / name, "\x00\x00garbage\n[1]\n" + whole + '{"step": 440, "lo', 12)
    write(run / "attempts" / "0002" / "exit.json", '{"reas', 12)
    after = run_status(run, NOW)
    assert (after.step, after.metrics, after.events) == (
        before.step,
        before.metrics,
        before.events,
    )
    assert after.is_running


def test_a_run_that_stopped_says_where_and_has_no_eta(run: Path) -> None:
    ended = {"reason": "stopped", "step": 437, "checkpoint": "step_00000437", "exit_code": 75}
    write(run / "attempts" / "0002" / "exit.json", json.dumps(ended), 10)
    status = run_status(run, NOW)
    assert (status.state, status.step, status.eta_seconds) == ("stopped", 437, None)
    assert "stopped, 10 s ago" in render(status)


def test_a_crashed_run_is_called_silent_with_its_age(run: Path) -> None:
    settle(run, 7300)
    status = run_status(run, NOW)
    assert (status.state, status.is_running, status.eta_seconds) == ("silent", False, None)
    assert "silent for 2 h 1 min without having ended" in render(status)
    assert "attempt 2   did not say why it ended" in render(status)


def test_a_run_whose_supervisor_waits_is_restarting_until_that_is_too_long_ago(run: Path) -> None:
    settle(run, 7300)
    record = {"attempt": 2, "action": "restart", "delay_seconds": 64.0}
    write(run / "supervisor.jsonl", lines(record), 20)
    status = run_status(run, NOW)
    assert (status.state, status.is_running) == ("restarting", False)
    assert "waiting to restart after a crash, 20 s ago" in render(status)
    assert run_status(run, NOW + 200).state == "silent"
    (run / "attempts" / "0003").mkdir()
    assert run_status(run, NOW).state == "running"
    write(run / "supervisor.jsonl", lines(record, {"attempt": 3, "action": "stop"}), 20)
    write(run / "attempts" / "0003" / "exit.json", '{"reason": "failed"}', 20)
    assert run_status(run, NOW).state == "failed"


def test_nothing_is_said_twice_and_nothing_of_what_nobody_said(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run / "events.jsonl", lines({"event": "stop", "reason": "finished", "cause": None}), 5)
    monkeypatch.chdir(run.parent)
    text = render(run_status(Path("small-1"), NOW))
    assert text.splitlines()[0].split() == ["run", "small-1", "(recipe", "small)"]
    assert text.endswith("stop  reason=finished")


def test_a_heartbeat_is_a_sign_of_life(run: Path) -> None:
    settle(run, 7300)
    write(run / "heartbeat" / "node_000", "{}", 9)
    status = run_status(run, NOW)
    assert (status.state, status.silent_seconds) == ("running", 9.0)


def test_slow_steps_are_no_silence(run: Path) -> None:
    slow = {"step_seconds": 20.0}
    metrics = lines({"step": 10, "timing": slow}, {"step": 20, "timing": slow})
    write(run / "metrics.jsonl", metrics, 900)
    settle(run, 900)
    assert run_status(run, NOW).is_running
    assert not run_status(run, NOW + 200).is_running


def test_a_run_that_has_only_a_config_has_not_started(tmp_path: Path) -> None:
    write(tmp_path / "config.json", "{}", 1)
    status = run_status(tmp_path, NOW)
    assert (status.state, status.step, status.num_steps, status.checkpoints) == (
        "not started",
        0,
        None,
        [],
    )
    assert "not started" in render(status)


@pytest.mark.parametrize("name", ["missing", "foreign", "foreign/file"])
def test_what_is_no_run_is_the_users_mistake(tmp_path: Path, name: str) -> None:
    write(tmp_path / "foreign" / "file", "", 1)
    with pytest.raises(UserError, match="--out"):
        run_status(tmp_path / name)


def test_it_needs_no_torch() -> None:
    program = (
        "import sys, electra_dist.launch.run_folder, electra_dist.launch.local\n"
        "import electra_dist.runtime.world, electra_dist.runtime.attempt\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_spans() -> None:
    assert [span(s) for s in (42.4, 430, 12_060, 190_000)] == [
        "42 s",
        "7 min",
        "3 h 21 min",
        "2 d 4 h",
    ]
