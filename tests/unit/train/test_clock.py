import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from electra_dist.resilience.deadline import Ahead
from electra_dist.resilience.guard import ExitReason
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import read_json_lines
from electra_dist.runtime.times import TimeBook
from electra_dist.train.clock import RunClock
from electra_dist.train.main import stop_cause

NOTHING = Ahead(evaluates_next=False, num_saves=0)


def a_clock(
    end_in: float = math.inf, *, term_in: float = math.inf, book: TimeBook | None = None
) -> RunClock:
    return RunClock(
        book or TimeBook(time.time(), None),
        SimpleNamespace(deadline=time.monotonic() + term_in),  # type: ignore[arg-type]
        end=time.monotonic() + end_in,
        margin_seconds=20.0,
        guessed_save_seconds=50.0,
        rows_a_step=10,
        rows_an_evaluation=95,
    )


def test_the_pace_is_guessed_until_it_is_measured() -> None:
    clock = a_clock()
    clock.stepped(data_wait_seconds=1.0, step_seconds=300.0)
    assert (clock.pace.step_seconds, clock.pace.save_seconds, clock.pace.evaluation_seconds) == (
        300.0,
        50.0,
        3000.0,
    )
    clock.stepped(data_wait_seconds=1.0, step_seconds=2.0)  # the first one is not met again
    clock.stepped(data_wait_seconds=1.0, step_seconds=3.0)
    assert (clock.pace.step_seconds, clock.pace.evaluation_seconds) == (3.0, 30.0)
    clock.saved([4.0, 7.0])
    with clock.evaluating():
        pass
    assert clock.pace.save_seconds == 7.0
    assert clock.pace.evaluation_seconds < 1.0


def test_without_an_end_there_is_no_hurry() -> None:
    signs = a_clock().signs(NOTHING)
    assert not signs.is_up
    assert not signs.hurry


@pytest.mark.parametrize(("end_in", "is_up"), [(1000.0, False), (76.0, False), (71.0, True)])
def test_the_time_is_up_when_a_step_the_save_and_the_margin_just_fit(
    end_in: float, is_up: bool
) -> None:
    clock = a_clock(end_in)
    clock.stepped(data_wait_seconds=0.0, step_seconds=3.0)
    assert clock.signs(NOTHING).is_up == clock.is_up == is_up


def test_after_sigterm_there_is_no_margin_to_keep() -> None:
    clock = a_clock(term_in=30.0)
    clock.stepped(data_wait_seconds=0.0, step_seconds=1.0)
    clock.saved([5.0])
    assert not clock.signs(NOTHING).hurry  # 9.5 steps' worth of evaluation, and 5 s
    clock.saved([25.0])
    assert clock.signs(NOTHING).hurry


@pytest.mark.parametrize(
    ("reason", "received", "is_up", "cause"),
    [
        (ExitReason.FINISHED, None, False, {}),
        (ExitReason.FAILED, "SIGTERM", True, {}),
        (ExitReason.ASKED, None, False, {"cause": "electra-dist stop"}),
        (ExitReason.STOPPED, "SIGUSR1", True, {"cause": "SIGUSR1"}),
        (ExitReason.STOPPED, None, True, {"cause": "time limit"}),
        (ExitReason.STOPPED, None, False, {"cause": "a signal to another rank"}),
    ],
)
def test_the_cause_of_a_stop(
    reason: ExitReason, received: str | None, is_up: bool, cause: dict[str, str]
) -> None:
    run: Any = SimpleNamespace(
        stop_signals=SimpleNamespace(received=received), clock=SimpleNamespace(is_up=is_up)
    )
    assert stop_cause(run, reason) == cause


def test_an_error_leaves_one_step_of_work_and_the_rest_was_waiting(tmp_path: Path) -> None:
    now = [500.0]
    attempt = Attempt.claim(tmp_path)
    book = TimeBook(1000.0, attempt, clock=lambda: now[0], now=lambda: 1000.0)
    clock = a_clock(book=book)
    book.begin(0)
    for step in (1, 2, 3):
        now[0] += 2
        clock.stepped(data_wait_seconds=0.5, step_seconds=2.0)
        book.boundary(step)
    now[0] += 60
    clock.broke_off(3)
    last = read_json_lines(attempt.folder / "times.jsonl")[-1]
    assert (last["time"], last["step"]) == (1066.0, 3)
    seconds = last["data_wait_seconds"], last["step_seconds"], last["hang_seconds"]
    assert seconds == (1.5, 4.5 + 2.0, 58.0)
