import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from electra_dist.errors import Superseded, UserError
from electra_dist.runtime.attempt import Attempt, Events
from electra_dist.runtime.files import read_json_lines


def test_attempts_are_numbered_from_one(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    assert [Attempt.claim(run).number for _ in range(3)] == [1, 2, 3]
    assert (run / "attempts" / "0003").is_dir()


def test_claimers_at_the_same_time_get_different_numbers(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        attempts = list(pool.map(lambda _: Attempt.claim(tmp_path), range(64)))
    assert sorted(a.number for a in attempts) == list(range(1, 65))


def test_a_later_attempt_fences_off_the_earlier_one(tmp_path: Path) -> None:
    first = Attempt.claim(tmp_path)
    other_rank = Attempt.join(tmp_path, first.number)
    path = tmp_path / "ledger.jsonl"
    other_rank.append_jsonl(path, {"a": 1})
    second = Attempt.claim(tmp_path)
    for attempt in (first, other_rank):
        with pytest.raises(Superseded, match="Attempt 1 of"):
            attempt.append_jsonl(path, {"a": 2})
    second.append_jsonl(path, {"a": 3})
    assert read_json_lines(path) == [{"a": 1}, {"a": 3}]


def test_the_tenth_thousandth_attempt_still_fences(tmp_path: Path) -> None:
    (tmp_path / "attempts" / "9999").mkdir(parents=True)
    before = Attempt.join(tmp_path, 9999)
    assert Attempt.claim(tmp_path).number == 10_000
    with pytest.raises(Superseded):
        before.check_current()


def test_exit_json_says_why_and_is_allowed_to_a_superseded_attempt(tmp_path: Path) -> None:
    attempt = Attempt.claim(tmp_path)
    Attempt.claim(tmp_path)
    attempt.write_exit(reason="stopped", step=7, checkpoint="step_00000007", exit_code=75)
    assert json.loads((tmp_path / "attempts" / "0001" / "exit.json").read_text()) == {
        "reason": "stopped",
        "step": 7,
        "checkpoint": "step_00000007",
        "exit_code": 75,
    }


def test_events_carry_time_attempt_rank_and_details(tmp_path: Path) -> None:
    attempt = Attempt.claim(tmp_path)
    Events(attempt=attempt, rank=0).append("resume", step=40, old_world_size=2)
    (event,) = read_json_lines(tmp_path / "events.jsonl")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", event.pop("time"))
    assert event == {
        "attempt": 1,
        "rank": 0,
        "event": "resume",
        "step": 40,
        "old_world_size": 2,
    }


def test_a_superseded_attempt_says_so_in_its_own_folder_alone(tmp_path: Path) -> None:
    old = Attempt.claim(tmp_path)
    events = Events(attempt=old, rank=0)
    Attempt.claim(tmp_path)
    for event in ("save", "superseded"):
        with pytest.raises(Superseded):
            events.append(event)
    assert not (tmp_path / "events.jsonl").exists()
    old.write_exit(reason="superseded", step=3, checkpoint=None, exit_code=1)


def test_start_json_says_who_claimed_the_attempt_and_when_it_was_launched(tmp_path: Path) -> None:
    attempt = Attempt.claim(tmp_path)
    attempt.write_start(1000.25, "a word", 4)
    value = json.loads((attempt.folder / "start.json").read_text())
    assert (value["launched"], value["launch"], value["world_size"]) == (1000.25, "a word", 4)
    assert value["claimed"] > 1e9
    assert value["pid"] == os.getpid()


def test_a_run_folder_that_cannot_be_made_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        Attempt.claim(tmp_path / "file" / "run")
