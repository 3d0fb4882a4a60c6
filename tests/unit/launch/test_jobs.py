import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from electra_dist.config.slurm_commands import Answer
from electra_dist.errors import UserError
from electra_dist.launch.jobs import (
    in_words,
    job_statuses,
    jobs_of,
    note_submissions,
    run_of_job,
)
from electra_dist.launch.run_folder import render, run_status


def test_jobs_that_were_submitted_and_those_that_ran(tmp_path: Path) -> None:
    assert jobs_of(tmp_path) == []
    note_submissions(tmp_path, ["9", "10"], "submit slurm")
    for number, job in enumerate(["9", "9", None, "11", "x;rm -rf /"]):
        folder = tmp_path / "attempts" / f"{number + 1:04d}"
        folder.mkdir(parents=True)
        (folder / "start.json").write_text(json.dumps({"job": job}))
    assert jobs_of(tmp_path) == ["9", "10", "11"]
    note_submissions(tmp_path, [str(number) for number in range(100, 120)], "submit slurm")
    assert jobs_of(tmp_path) == [str(number) for number in range(110, 120)]


def test_what_slurm_says_of_them(tmp_path: Path) -> None:
    note_submissions(tmp_path, ["9", "10"], "submit slurm")
    asked: list[Sequence[str]] = []

    def squeue(words: Sequence[str]) -> Answer:
        asked.append(words)
        lines = [
            "9|RUNNING|2026-03-01T12:00:00|2026-03-02T12:00:00|n[1-2]|None",
            "10|PENDING|N/A|N/A||held by ops | ask",
        ]
        return Answer(code=0, words="\n".join(lines))

    running, waiting = job_statuses(tmp_path, squeue)
    assert "9,10" in asked[0]
    assert in_words(running) == "running on n[1-2] until 2026-03-02T12:00:00"
    assert in_words(waiting) == "pending (held by ops | ask)"
    assert (waiting.starts, waiting.nodes) == (None, None)


@pytest.mark.parametrize("code", [None, 1])
def test_without_an_answer_nothing_is_said(tmp_path: Path, code: int | None) -> None:
    note_submissions(tmp_path, ["9"], "submit slurm")
    assert job_statuses(tmp_path, lambda _: Answer(code=code, words="gone")) == []
    text = render(run_status(tmp_path))
    assert "not started" in text
    assert "job 9" not in text


def test_a_run_without_jobs_asks_nobody(tmp_path: Path) -> None:
    def never(_: Sequence[str]) -> Answer:
        raise AssertionError("Slurm was asked")

    assert job_statuses(tmp_path, never) == []


def shown(command: str, folder: Path) -> Answer:
    return Answer(code=0, words=f"JobId=9\n   Command={command}\n   WorkDir={folder}")


@pytest.mark.parametrize(
    "command",
    [
        "{run}/submit.sbatch",
        "{run}/submitit/.submission_file_0.sh",
        "slurm/pretrain.sbatch c.toml a run",
        "{folder}/slurm/pretrain.sbatch c.toml a run --optim.learning_rate 2e-4",
        "slurm/pretrain.sbatch c.toml {run} --init-from other",
    ],
)
def test_the_run_of_a_job(tmp_path: Path, command: str) -> None:
    run, other = tmp_path / "a run", tmp_path / "other"
    for folder in (run, other):
        (folder / "attempts").mkdir(parents=True)
    (run / "submitit").mkdir()
    for name in ("c.toml", "a run/submit.sbatch", "a run/submitit/.submission_file_0.sh"):
        (tmp_path / name).touch()
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "pretrain.sbatch").touch()
    words = command.format(run=run, folder=tmp_path)
    assert run_of_job("9", lambda _: shown(words, tmp_path)) == run


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(code=None, words="no scontrol"), "no answer here"),
        (Answer(code=1, words="Invalid job id specified"), "knows no job 9"),
        (shown("/etc/passwd x y", Path("/")), "no pretraining"),
    ],
)
def test_a_job_without_a_run(answer: Answer, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_of_job("9", lambda _: answer)
