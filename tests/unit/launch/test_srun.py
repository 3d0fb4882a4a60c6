import os
import stat
import sys
from pathlib import Path

import pytest

from electra_dist.config.variables import LAUNCH, MISTAKE_FILE
from electra_dist.errors import UserError
from electra_dist.launch import srun, step_watch
from electra_dist.launch.local import Signals
from electra_dist.launch.srun import Allocation, SrunLauncher, srun_command, usable_nodes

BATCH = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_JOB_NODELIST": "n[1-3]",
    "SLURM_NTASKS": "6",
    "SLURM_TASKS_PER_NODE": "2(x3)",
}
NO_RUN = Path("/no/run")
RANK = ["python", "-m", "electra_dist", "pretrain", "--out", "/a run"]


@pytest.mark.parametrize(
    ("more", "nodes", "no_kill", "words"),
    [
        ({}, None, False, ["--overlap", "--ntasks=6"]),
        (
            {"SLURM_CPUS_PER_TASK": "8"},
            None,
            False,
            ["--overlap", "--cpus-per-task=8", "--ntasks=6"],
        ),
        ({}, None, True, ["--no-kill", "--overlap", "--ntasks=6"]),
        (
            {},
            ["n1", "n3"],
            True,
            [
                *("--no-kill", "--overlap", "--nodes=2", "--ntasks=4", "--ntasks-per-node=2"),
                "--nodelist=n1,n3",
            ],
        ),
        (
            {"SLURM_NTASKS": "", "SLURM_TASKS_PER_NODE": "2,1(x2)"},
            None,
            False,
            ["--overlap", "--ntasks=4"],
        ),
    ],
)
def test_the_command(
    more: dict[str, str], nodes: list[str] | None, no_kill: bool, words: list[str]
) -> None:
    allocation = Allocation.from_environment({**BATCH, **more})
    always = ["srun", "--kill-on-bad-exit=1", "--disable-status", "--unbuffered"]
    assert srun_command(RANK, allocation, nodes, no_kill=no_kill) == [*always, *words, *RANK]


def test_outside_an_allocation_and_inside_a_step_the_user_is_told_what_to_do() -> None:
    with pytest.raises(UserError, match=r"SLURM_JOB_ID is not set.*--nproc N"):
        Allocation.from_environment({})
    with pytest.raises(UserError, match=r"leave --launcher out here"):
        Allocation.from_environment({**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "6"})


def test_an_interactive_step_of_salloc_may_launch() -> None:
    step = {**BATCH, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}
    assert Allocation.from_environment(step).num_tasks == 6


def test_which_nodes_are_left() -> None:
    answer = """
n1 allocated
n1 allocated
n2 down*
n3 idle
n4 mixed
n5 down
n6 draining
n7 idle*
n8 failing
n9
"""
    assert usable_nodes(answer) == ["n1", "n3", "n4", "n6"]
    assert usable_nodes("") == []


def test_a_launch_goes_on_with_the_nodes_that_are_left() -> None:
    answers = ["", "n1 alloc\nn2 alloc\nn3 alloc\n", "n1 alloc\nn2 down*\nn3 alloc\n"]
    launcher = SrunLauncher(BATCH, NO_RUN, no_kill=True, ask=lambda _: answers.pop(0))
    assert launcher.world_size == 6
    assert [launcher.look() for _ in range(3)] == [6, 6, 4]
    assert launcher.world_size == 4
    # An allocation that Slurm ends with its first node is never asked for.
    assert SrunLauncher(BATCH, NO_RUN, no_kill=False, ask=lambda _: "n1 down").look() == 6


def fake_srun(folder: Path, program: str) -> dict[str, str]:
    """An environment with a program called srun in front of all others."""
    path = folder / "srun"
    path.write_text(f"#!{sys.executable} -IS\nimport os, signal, sys, time\n{program}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {**BATCH, "PATH": f"{folder}:{os.environ['PATH']}", "OUT": str(folder)}


def test_it_is_really_started_with_the_variables_of_the_launch(tmp_path: Path) -> None:
    program = (
        "open(os.environ['OUT'] + '/seen', 'w').write(' '.join(sys.argv[1:]) + os.environ['A'])"
    )
    launcher = SrunLauncher(fake_srun(tmp_path, program), tmp_path, no_kill=False)
    assert launcher.run(["rank", "x"], {"A": " and A", LAUNCH: "x"}, Signals()) == 0
    seen = (tmp_path / "seen").read_text()
    assert (
        seen
        == "--kill-on-bad-exit=1 --disable-status --unbuffered --overlap --ntasks=6 rank x and A"
    )


def test_a_step_that_has_lost_a_node_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun of an allocation with --no-kill would wait for ever."""
    monkeypatch.setattr(step_watch, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(step_watch, "NODES_EVERY", 1)
    monkeypatch.setattr(srun, "GRACE_SECONDS", 0.1)
    environ = fake_srun(tmp_path, "time.sleep(60)")
    answers = iter(["n1 alloc\nn2 alloc\nn3 alloc", "", "n1 alloc\nn2 down*\nn3 alloc"])
    launcher = SrunLauncher(environ, tmp_path, no_kill=True, ask=lambda _: next(answers))
    assert launcher.run(["rank"], {LAUNCH: "x"}, Signals()) == -15


def test_a_mistake_of_the_user_is_known_though_srun_says_143(tmp_path: Path) -> None:
    program = f"open(os.environ['{MISTAKE_FILE}'], 'w').write('no corpus'); sys.exit(143)"
    launcher = SrunLauncher(fake_srun(tmp_path, program), tmp_path, no_kill=False)
    assert launcher.run(["rank"], {LAUNCH: "x"}, Signals()) == 2


def test_a_step_whose_ranks_have_ended_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step daemon that was killed: srun would wait for it without end."""
    monkeypatch.setattr(step_watch, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(step_watch, "LINGER_SECONDS", 0.1)
    monkeypatch.setattr(srun, "GRACE_SECONDS", 0.1)
    attempt = tmp_path / "attempts" / "0001"
    attempt.mkdir(parents=True)
    (attempt / "start.json").write_text('{"launch": "x"}')
    (attempt / "exit.json").write_text("{}")
    environ = fake_srun(tmp_path, "time.sleep(60)")
    launcher = SrunLauncher(environ, tmp_path, no_kill=False)
    assert launcher.run(["rank"], {LAUNCH: "x"}, Signals()) == -15
