import json
import logging
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.config.lines import append_line
from electra_dist.errors import Superseded
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import read_json_lines
from electra_dist.runtime.metrics import MetricsWriter, console_line, duration

VALUES = {"loss": 45.1, "generator_loss": 1 / 3, "lr": 5e-4, "grad_norm": 1.25, "tokens": 4096}
TIMING = {"step_seconds": 0.5, "tokens_per_s": 8192.0}


def writer(run: Path, attempt: Attempt | None = None, tensorboard: bool = False) -> MetricsWriter:
    return MetricsWriter(
        run, attempt or Attempt.claim(run), tensorboard=tensorboard, log_every=10, num_steps=95
    )


def run_steps(metrics: MetricsWriter, first: int, last: int, seconds: float = 0.5) -> None:
    for step in range(first, last + 1):
        evaluation = {"auc": step / 97} if step % 25 == 0 else None
        values = {"loss": 1 / step, "tokens": step * 128}
        metrics.record(step, values, {"step_seconds": seconds}, evaluation)


def test_a_line_has_the_values_then_the_evaluation_then_the_timing(tmp_path: Path) -> None:
    writer(tmp_path).record(10, VALUES, TIMING, {"auc": 0.5})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == (
        '{"step": 10, "loss": 45.1, "generator_loss": 0.3333333333333333, "lr": 0.0005, '
        '"grad_norm": 1.25, "tokens": 4096, "eval": {"auc": 0.5}, '
        '"timing": {"step_seconds": 0.5, "tokens_per_s": 8192.0}}\n'
    )


def test_logged_are_the_first_each_tenth_the_last_and_the_evaluated(tmp_path: Path) -> None:
    run_steps(writer(tmp_path), 1, 95)
    steps = [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")]
    assert steps == [1, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 95]


@given(value=st.floats())
def test_every_float_survives_exactly_and_the_line_is_plain_json(
    tmp_path_factory: pytest.TempPathFactory, value: float
) -> None:
    run = tmp_path_factory.mktemp("run")
    writer(run).record(1, {"loss": value}, {})
    text = (run / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    read = float(line["loss"])
    assert read == value or (math.isnan(read) and math.isnan(value))


@pytest.mark.parametrize("half_line", ["", '{"step": 62, "los'])
def test_a_resumed_run_has_the_same_lines_as_an_undisturbed_one(
    tmp_path: Path, half_line: str
) -> None:
    calm, broken = tmp_path / "calm", tmp_path / "broken"
    run_steps(writer(calm), 1, 95)
    run_steps(writer(broken), 1, 62)
    with (broken / "metrics.jsonl").open("a") as file:
        file.write(half_line)
    resumed = writer(broken)
    resumed.truncate_after(40)
    assert read_json_lines(broken / "metrics.jsonl")[-1]["step"] == 40
    run_steps(resumed, 41, 95)
    assert (broken / "metrics.jsonl").read_bytes() == (calm / "metrics.jsonl").read_bytes()


def test_a_line_that_lacks_only_its_end_is_whole(tmp_path: Path) -> None:
    run_steps(writer(tmp_path), 1, 40)
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    writer(tmp_path).truncate_after(40)
    assert path.read_bytes() == before


def test_truncating_to_where_the_run_is_changes_nothing(tmp_path: Path) -> None:
    metrics = writer(tmp_path)
    metrics.truncate_after(0)
    run_steps(metrics, 1, 40)
    before = (tmp_path / "metrics.jsonl").stat()
    metrics.truncate_after(40)
    after = (tmp_path / "metrics.jsonl").stat()
    assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)


def test_a_superseded_attempt_neither_writes_nor_truncates(tmp_path: Path) -> None:
    metrics = writer(tmp_path)
    metrics.record(1, VALUES, TIMING)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    Attempt.claim(tmp_path)
    with pytest.raises(Superseded):
        metrics.record(10, VALUES, TIMING)
    with pytest.raises(Superseded):
        metrics.truncate_after(0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_full_disk_delays_lines_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    metrics = writer(tmp_path)
    metrics.record(1, VALUES, TIMING)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        metrics.record(10, VALUES, TIMING)
        metrics.record(20, VALUES, TIMING)
    assert "No space left" in caplog.text
    metrics.record(30, VALUES, TIMING)
    steps = [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")]
    assert steps == [1, 10, 20, 30]


def test_the_console_has_a_line_with_the_eta(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "electra_dist"):
        writer(tmp_path).record(10, VALUES, TIMING, {"auc": 0.5})
    line, held_out = caplog.messages
    assert line == (
        "step 10/95  loss  45.1000  generator_loss   0.3333  lr 5.00e-04  grad   1.250"
        "       8,192 tokens/s  ETA    00:00:42"
    )
    assert held_out.split() == ["held", "out", "auc", "0.5"]


@given(step=st.integers(0, 999_999), loss=st.floats(0, 99), seconds=st.floats(0, 300))
def test_console_columns_stay_where_they_are(step: int, loss: float, seconds: float) -> None:
    def line(step: int, loss: float, seconds: float) -> str:
        timing = {"step_seconds": seconds / 1000, "tokens_per_s": 1000 * seconds}
        return console_line(step, 1_000_000, {"loss": loss, "lr": 1e-4}, timing)

    assert len(line(step, loss, seconds)) == len(line(0, 0.0, 0.0))


def test_durations() -> None:
    assert duration(3725.4).strip() == "01:02:05"
    assert duration(200_000).strip() == "2d 07:33:20"
    assert duration(math.nan).strip() == "?"


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = writer(tmp_path, tensorboard=True)
    run_steps(first, 1, 60)
    second = writer(tmp_path, tensorboard=True)
    second.truncate_after(40)
    run_steps(second, 41, 95)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [1, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 95]
    assert {"eval/auc", "timing/step_seconds"} <= set(events.Tags()["scalars"])
    assert "custom_scalars__config__" in events.Tags()["tensors"]  # the page "tug of war"


def test_tensorboard_gets_nothing_of_an_attempt_that_was_superseded_in_mid_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspended rank wakes up between its line and its points."""
    cut_off = writer(tmp_path, tensorboard=True)
    run_steps(cut_off, 1, 20)
    before = files_under(tmp_path / "tensorboard")

    def append_and_sleep(path: Path, text: str) -> None:
        append_line(path, text)
        Attempt.claim(tmp_path)

    monkeypatch.setattr("electra_dist.runtime.metrics.append_line", append_and_sleep)
    with pytest.raises(Superseded):
        run_steps(cut_off, 21, 30)
    assert files_under(tmp_path / "tensorboard") == before


def files_under(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
