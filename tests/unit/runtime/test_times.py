from itertools import pairwise
from pathlib import Path
from typing import Any

from electra_dist.config import variables
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import read_json_lines
from electra_dist.runtime.times import TimeBook, launched_at


class Clock:
    def __init__(self) -> None:
        self.now = 500.0

    def __call__(self) -> float:
        return self.now


def a_book(folder: Path, launched: float = 1000.0) -> tuple[TimeBook, Clock, Path]:
    """A book of an attempt that was launched 8 s ago."""
    attempt, clock = Attempt.claim(folder), Clock()
    book = TimeBook(launched, attempt, clock, now=lambda: launched + 8.0)
    return book, clock, attempt.folder / "times.jsonl"


def short(record: dict[str, Any]) -> tuple[float, int, dict[str, float]]:
    parts = {
        name.removesuffix("_seconds"): value
        for name, value in record.items()
        if name not in ("time", "step", "next_line_seconds") and value
    }
    return record["time"], record["step"], parts


def test_a_line_holds_the_seconds_of_each_part_at_a_boundary(tmp_path: Path) -> None:
    book, clock, path = a_book(tmp_path)
    clock.now += 2
    book.begin(40)
    clock.now += 3
    book.add("step", 2.5)
    book.boundary(41)  # no line is due
    with book.spent_on("save"):
        clock.now += 1
    clock.now += 1
    book.boundary(42, must_write=True)
    clock.now += 4
    assert book.since_boundary == 4
    book.add("hang", book.since_boundary)
    book.end(42)
    assert [short(record) for record in read_json_lines(path)] == [
        (1010.0, 40, {"start_up": 10.0}),
        (1015.0, 42, {"start_up": 10.0, "step": 2.5, "save": 1.0}),
        (1019.0, 42, {"start_up": 10.0, "step": 2.5, "save": 1.0, "hang": 4.0}),
    ]


def test_lines_come_every_ten_seconds_and_more_seldom_in_a_long_life(tmp_path: Path) -> None:
    book, clock, path = a_book(tmp_path)
    book.begin(0)
    for step in range(1, 30 * 24 * 60):  # a month of steps of one minute
        clock.now += 60
        book.boundary(step)
    records = read_json_lines(path)
    gaps = [b["time"] - a["time"] for a, b in pairwise(records)]
    assert gaps[0] == 60
    assert all(
        gap <= 60 + max(10.0, (a["time"] - 1000) / 500)
        for a, gap in zip(records, gaps, strict=False)
    )
    assert len(records) < 5000


def test_a_roll_back_says_where_steps_stopped_and_from_where_they_went_on(tmp_path: Path) -> None:
    book, clock, path = a_book(tmp_path)
    book.begin(0)
    for step in (1, 2, 3):
        clock.now += 1
        book.add("step", 1)
        book.boundary(step)
    clock.now += 1
    book.add("step", 0.5)
    clock.now += 4  # replays and the restore
    book.rolled_back(1)
    for step in (2, 3):
        clock.now += 1
        book.add("step", 1)
        book.boundary(step)
    book.end(3)
    assert [short(record)[1:] for record in read_json_lines(path)] == [
        (0, {"start_up": 8.0}),
        (4, {"start_up": 8.0, "step": 8}),
        (1, {"start_up": 8.0, "step": 8}),
        (3, {"start_up": 8.0, "step": 10}),
    ]


def test_a_process_knows_when_it_was_launched() -> None:
    assert launched_at({variables.LAUNCHED: "12.5"}) == 12.5
    assert launched_at({}) > 1e9
