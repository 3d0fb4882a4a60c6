from datetime import datetime

import pytest

from electra_dist.config import variables
from electra_dist.errors import UserError
from electra_dist.runtime.job_end import job_end, parse_time_limit


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("3600", 3600),
        ("0.5", 0.5),
        ("1:30:00", 5400),
        ("00:00:07", 7),
        ("36:00:00", 129_600),
        ("2-12:00:30", 216_030),
    ],
)
def test_a_time_limit(words: str, seconds: float) -> None:
    assert parse_time_limit(words) == seconds


@pytest.mark.parametrize(
    "words", ["", "0", "-5", "1:30", "1:60:00", "1:00:60", "1h", "nan", "inf", "1-2", "1:00:00 "]
)
def test_what_is_no_time_limit(words: str) -> None:
    with pytest.raises(UserError, match=r"--time-limit .* give seconds \(5400\), H:MM:SS"):
        parse_time_limit(words)


def never(job: str) -> str:
    raise AssertionError(f"squeue was asked for {job}")


def test_without_a_scheduler_and_a_word_there_is_no_end() -> None:
    assert job_end({}, never) is None


def test_the_earliest_end_counts_and_nobody_is_asked_who_need_not_be() -> None:
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "2000"}
    assert job_end(slurm, never) == 2000.0
    assert job_end({**slurm, variables.END_TIME: "1500.5"}, never) == 1500.5
    assert job_end({**slurm, variables.END_TIME: "2500"}, never) == 2000.0
    assert job_end({variables.END_TIME: "2500"}, never) == 2500.0


@pytest.mark.parametrize("answer", ["", "N/A\n", "NONE\n", "slurm_load_jobs error: gone\n"])
def test_a_scheduler_that_does_not_know_is_no_error(answer: str) -> None:
    assert job_end({"SLURM_JOB_ID": "7"}, lambda _: answer) is None


def test_squeue_speaks_local_time() -> None:
    asked: list[str] = []

    def answer(job: str) -> str:
        asked.append(job)
        return "2026-03-01T12:00:00\n"

    expected = datetime(2026, 3, 1, 12).timestamp()
    assert job_end({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": ""}, answer) == expected
    assert asked == ["7"]


def test_a_squeue_that_is_not_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert job_end({"SLURM_JOB_ID": "7"}) is None
