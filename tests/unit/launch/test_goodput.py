"""The split of the wall time, against a simulated run that knows every second of the truth."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.launch.goodput import PARTS, AttemptTimes, Line, read_attempts, split

LOOP = ("data_wait", "step", "save", "evaluation")


class Simulated:
    """A run that saves every few steps, is killed, and resumes; it counts the truth itself."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 1e9
        self.truth = dict.fromkeys((*PARTS, "other"), 0.0)
        self.attempts: list[AttemptTimes] = []
        self.saved_at = self.step = 0
        self.since_save = dict.fromkeys(LOOP, 0.0)
        self.counted: dict[str, float] = {}
        self.gap = 0.0

    def spend(self, part: str, at_most: float) -> None:
        seconds = at_most * self.rng.random()
        self.now += seconds
        self.truth[part] += seconds
        self.counted[part] += seconds
        if part in LOOP:
            self.since_save[part] += seconds

    def save(self) -> None:
        self.spend("save", 1.0)
        self.saved_at, self.since_save = self.step, dict.fromkeys(LOOP, 0.0)

    def line(self) -> Line:
        return Line(time=self.now, step=self.step, seconds=dict(self.counted))

    def attempt(self, num_steps: int, save_every: int, ends: str) -> None:
        launched = self.now
        self.counted = dict.fromkeys((*LOOP, "start_up", "hang"), 0.0)
        self.spend("start_up", 30.0)
        self.step, self.since_save = self.saved_at, dict.fromkeys(LOOP, 0.0)
        lines = [self.line()]
        for _ in range(num_steps):
            for part, scale in (("data_wait", 0.1), ("step", 2.0), ("evaluation", 0.2)):
                self.spend(part, scale)
            self.step += 1
            if is_due := self.step % save_every == 0:
                self.save()
            if is_due or self.now - lines[-1].time > 7:
                lines.append(self.line())
        if ends == "stopped":
            self.save()
            lines.append(self.line())
        for part in LOOP:  # what was not saved is lost
            self.truth[part] -= self.since_save[part]
            self.truth["redone"] += self.since_save[part]
        if ends == "failed":
            self.spend("hang", 50.0)
            lines.append(self.line())
        self.attempts.append(
            AttemptTimes(
                number=len(self.attempts) + 1,
                launched=launched,
                ended=self.now,
                is_over=ends != "killed",
                has_failed=ends == "failed",
                lines=lines,
            )
        )
        self.gap = 20.0 * self.rng.random()
        self.truth["stopped"] += self.gap
        self.now += self.gap


@given(
    st.integers(0, 10**6),
    st.lists(
        st.tuples(
            st.integers(0, 60), st.integers(3, 30), st.sampled_from(["stopped", "failed", "killed"])
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_every_second_of_a_run_is_found_again(seed: int, lives: list[tuple[int, int, str]]) -> None:
    run = Simulated(random.Random(seed))
    for num_steps, save_every, ends in lives:
        run.attempt(num_steps, save_every, ends)
    # The last word must be an orderly one: what a dead run has lost shows when it is resumed.
    run.attempt(1, 1, "stopped")
    found = split(run.attempts)
    assert found is not None
    run.truth["stopped"] -= run.gap
    assert found.wall_seconds == pytest.approx(sum(run.truth.values()))
    assert sum(found.seconds.values()) == pytest.approx(found.wall_seconds)
    for part, seconds in run.truth.items():
        assert found.seconds[part] == pytest.approx(seconds, abs=1e-3), part


def a_line(time: float, at: int, /, **seconds: float) -> Line:
    return Line(time=time, step=at, seconds={"start_up": 0.0, **seconds})


def an_attempt(*lines: Line, launched: float = 0.0, **more: Any) -> AttemptTimes:
    values = {"number": 1, "launched": launched, "ended": None, "is_over": True, "lines": lines}
    return AttemptTimes(**{**values, **more})


def parts(*attempts: AttemptTimes, now: float | None = None) -> dict[str, float]:
    found = split(attempts, now)
    assert found is not None
    assert sum(found.seconds.values()) == pytest.approx(found.wall_seconds)
    return {part: pytest.approx(s) for part, s in found.seconds.items() if abs(s) > 1e-9}


def test_no_attempt_no_split() -> None:
    assert split([]) is None


def test_a_killed_attempt_worked_until_its_next_line_was_due_and_hung_from_then_on() -> None:
    lines = a_line(5, 0, start_up=5.0), a_line(15, 10, start_up=5.0, step=10.0)
    killed = an_attempt(*lines, is_over=False, ended=22.0)
    assert parts(killed) == {"start_up": 5, "step": 10, "redone": 7}
    hung = an_attempt(*lines, is_over=False, ended=300.0)
    assert parts(hung) == {"start_up": 5, "step": 10, "redone": 10, "hang": 275}


def test_ranks_that_outlive_a_failed_rank_0_hang_until_they_are_killed() -> None:
    lines = a_line(5, 0, start_up=5.0), a_line(15, 10, start_up=5.0, step=8.0, hang=2.0)
    failed = an_attempt(*lines, has_failed=True, ended=40.0)
    assert parts(failed) == {"start_up": 5, "step": 8, "hang": 27}
    stopped = an_attempt(*lines, ended=40.0)
    assert parts(stopped) == {"start_up": 5, "step": 8, "hang": 2}


def test_an_attempt_that_died_while_starting_was_starting() -> None:
    died = an_attempt(is_over=False, ended=9.0)
    again = an_attempt(
        a_line(17, 0, start_up=5.0), a_line(20, 3, start_up=5.0, step=2.5), launched=12.0
    )
    assert parts(died, again) == {"start_up": 14, "stopped": 3, "step": 2.5, "other": 0.5}


def test_a_run_that_runs_is_measured_up_to_now() -> None:
    running = an_attempt(a_line(5, 0, start_up=5.0), is_over=False, ended=5.0)
    assert parts(running, now=8.0) == {"start_up": 5, "other": 3}


def test_a_roll_back_within_an_attempt() -> None:
    rolled_back = an_attempt(
        a_line(0, 0),
        a_line(10, 10, step=10.0),
        a_line(16, 16, step=16.0),
        a_line(16, 10, step=16.0),
        a_line(23, 15, step=21.0),
    )
    assert parts(rolled_back) == {"step": 15, "redone": 6, "other": 2}


def test_where_no_line_stands_at_the_step_that_was_resumed_its_interval_is_cut() -> None:
    first = an_attempt(a_line(0, 0), a_line(20, 10, step=20.0))
    second = an_attempt(a_line(20, 4), a_line(30, 9, step=10.0), launched=20.0)
    assert parts(first, second) == {"step": 8 + 10, "redone": 12}


def test_clocks_that_disagree_make_no_time_twice() -> None:
    """The next attempt was launched, by its host's clock, before this one had ended."""
    first = an_attempt(a_line(0, 0), a_line(10, 5, step=10.0), a_line(30, 9, step=30.0))
    second = an_attempt(a_line(25, 5, start_up=5.0), a_line(35, 9, start_up=5.0, step=10.0))
    late = parts(first, an_attempt(*second.lines, launched=20.0))
    assert late == {"step": 20, "stopped": 10, "start_up": 5}


def test_a_folder_is_read_as_its_attempts_have_left_it(tmp_path: Path) -> None:
    for n, launched in ((1, 1000.0), (2, 1050.0)):
        folder = tmp_path / "attempts" / f"000{n}"
        folder.mkdir(parents=True)
        start = {"launched": launched, "claimed": launched + 2}
        (folder / "start.json").write_text(json.dumps(start))
        line = {"time": launched + 5, "step": 0, "start_up_seconds": 5.0}
        (folder / "times.jsonl").write_text(json.dumps(line) + '\n{"time": 10')
    (tmp_path / "attempts" / "0002" / "exit.json").write_text('{"reason": "stopped"}')
    (tmp_path / "attempts" / "0003").mkdir()  # of a version that kept no times
    events = [{"attempt": 1, "time": "1970-01-01T00:16:50+00:00"}, {"attempt": 1}]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, events)))
    first, second = read_attempts(tmp_path)
    assert (first.launched, first.ended, first.is_over, len(first.lines)) == (1000, 1010, False, 1)
    assert (second.number, second.ended, second.is_over) == (2, 1052, True)
    gone = {"attempt": 1, "ended": 1013.5}
    (tmp_path / "supervisor.jsonl").write_text(json.dumps(gone) + "\n")
    assert read_attempts(tmp_path)[0].ended == 1013.5
