import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.errors import UserError
from electra_dist.launch.report import report, write_report
from electra_dist.launch.svg import bar, chart, thinned

NASTY = "<script>alert('x')</script>&\""
VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Checks that every element is closed, and collects text and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def write(path: Path, *records: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two attempts, the first of which crashed; a user who gives everything nasty names."""
    run = tmp_path / "a <run> & more"
    write(run / "config.json", {"recipe": NASTY, "schedule": {"num_steps": 40}})
    lines = [
        {"step": n, "loss": 50.0 / n, NASTY: n, "timing": {"tokens_per_s": 100.0}}
        for n in range(1, 21)
    ]
    lines[-1]["eval"] = {"disc_auc": 0.75}
    lines[4]["loss"] = "NaN"
    write(run / "metrics.jsonl", *lines)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')
    events = [{"time": "T", "attempt": 1, "event": "save", "step": n} for n in range(400)]
    write(run / "events.jsonl", *events, {"event": NASTY, "cause": NASTY})
    for n, launched in ((1, 1000.0), (2, 1100.0)):
        folder = run / "attempts" / f"000{n}"
        start = {"launched": launched, "claimed": launched, "world_size": 2, "host": NASTY}
        write(folder / "start.json", start)
        times = [
            {"time": launched + 10, "step": 0, "start_up_seconds": 10.0},
            {"time": launched + 60, "step": 20, "start_up_seconds": 10.0, "step_seconds": 50.0},
        ]
        write(folder / "times.jsonl", *times)
    ended = {"reason": "stopped", "step": 20, "checkpoint": None, "exit_code": 75}
    write(run / "attempts" / "0002" / "exit.json", ended)
    write(
        run / "supervisor.jsonl", {"attempt": 1, "ended": 1065.0, "action": "restart", "why": NASTY}
    )
    return run


def test_it_is_one_sound_file_that_loads_nothing_and_runs_nothing(run: Path) -> None:
    text = write_report(run).read_text()
    page = Balanced(text)
    names = {tag for tag, _ in page.tags}
    assert {"svg", "polyline", "table"} <= names
    assert not names & {"script", "link", "img", "iframe", "object"}
    assert not any(name in ("src", "href", "onload") for _, found in page.tags for name in found)
    assert "url(" not in text
    assert "@import" not in text
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_it_says_what_happened(run: Path) -> None:
    page = Balanced(report(run))
    said = "\n".join(page.said)
    for words in (
        "a <run> & more",
        NASTY,
        "crashed, or was killed",
        "restart",
        "400 save",
        "held out: disc_auc",
        "tokens_per_s",
        "training steps",
        "stopped, between attempts",
    ):
        assert words in said
    cells = re.findall(r"([\d,.]+) s\b", said)
    seconds = [float(cell.replace(",", "")) for cell in cells if "." in cell]
    assert seconds[-1] == pytest.approx(sum(seconds[:-1]), abs=0.5)


def test_a_run_that_has_done_nothing_yet_has_a_report_too(tmp_path: Path) -> None:
    (tmp_path / "attempts").mkdir()
    Balanced(report(tmp_path))
    with pytest.raises(UserError, match="--out"):
        report(tmp_path / "attempts")


@given(st.lists(st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf]), max_size=30))
def test_any_curve_is_drawn_inside_its_frame(values: list[float]) -> None:
    text = chart(NASTY, [(float(i), y) for i, y in enumerate(values)])
    Balanced(text)
    assert "nan" not in text.replace(NASTY, "")
    drawn = re.findall(r'points="([^"]*)"', text)
    for point in " ".join(drawn).split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= 420
        assert 0 <= y <= 180


def test_thinning_keeps_the_peaks_and_the_order() -> None:
    points = [(float(i), math.sin(i / 500)) for i in range(10_000)]
    points[4321] = (4321.0, 99.0)
    points[7654] = (7654.0, -99.0)
    few = thinned(points, 600)
    assert len(few) <= 600
    assert {(4321.0, 99.0), (7654.0, -99.0)} <= set(few)
    assert few == sorted(few)
    assert thinned(points[:600], 600) == points[:600]


def test_a_bar_is_as_long_as_the_whole() -> None:
    text = bar([("a", 0.5, "red"), (NASTY, 0.25, "blue"), ("c", 0.25, "green"), ("d", -0.1, "x")])
    Balanced(text)
    assert sum(float(w) for w in re.findall(r'width="([\d.]+)"', text)) == pytest.approx(100)
