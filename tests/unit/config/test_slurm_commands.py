from pathlib import Path

import pytest

from electra_dist.config.slurm_commands import ask_slurm, job_fields

# As Slurm 22.05 prints it.
SHOWN = """\
JobId=17 JobName=electra-a run
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   ReqNodeList=(null) ExcNodeList=n[1,3]
   Command=/work/slurm/pretrain.sbatch my config.toml a run
   WorkDir=/work
"""


def program(folder: Path, text: str) -> None:
    path = folder / "squeue"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_an_answer_a_refusal_and_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program(tmp_path, 'echo "$1 $SLURM_TIME_FORMAT"; echo warning >&2')
    answer = ask_slurm(["squeue", "-h"])
    assert (answer.code, answer.words, answer.printed) == (0, "-h standard", "-h standard")
    program(tmp_path, "echo half; echo 'Invalid job id' >&2; exit 1")
    answer = ask_slurm(["squeue"])
    assert (answer.code, answer.words, answer.printed) == (1, "half\nInvalid job id", "")
    program(tmp_path, "exec sleep 60")
    assert ask_slurm(["squeue"], seconds=0.2).code is None
    answer = ask_slurm(["scontrol-of-no-site"])
    assert (answer.code, answer.printed) == (None, "")


def test_what_a_job_shows() -> None:
    fields = job_fields(SHOWN)
    assert fields["JobState"] == "RUNNING"
    assert fields["ExcNodeList"] == "n[1,3]"
    assert fields["Command"] == "/work/slurm/pretrain.sbatch my config.toml a run"
    assert fields["WorkDir"] == "/work"
    assert job_fields("slurm_load_jobs error: Invalid job id specified") == {}
