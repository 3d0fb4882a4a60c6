"""Which nodes are bad, and what follows: from the lines of the doctor to Slurm's list."""

import json
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from electra_dist.config.slurm_commands import Answer
from electra_dist.launch.preflight import (
    REMEMBERED_SECONDS,
    examine_nodes,
    found_in_job,
    judged,
    lately_bad,
    read_verdicts,
    write_down,
)
from electra_dist.launch.requeue import Ending, State, decide, seen
from electra_dist.launch.slurm_job import Job, end_job, ending_of
from electra_dist.launch.srun import Allocation, SrunLauncher

BATCH = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_JOB_NODELIST": "n[1-3]",
    "SLURM_NTASKS": "6",
    "SLURM_TASKS_PER_NODE": "2(x3)",
}
ALLOCATION = Allocation.from_environment(BATCH)
NODES = ["n1", "n2", "n3"]


def test_verdicts_by_node_and_silence_is_bad() -> None:
    output = """\
OK node n1
srun: error: n2: task 1: Exited with exit code 1
BAD node n2: scratch: No space left on device | all-reduce: no answer in 90 s
BAD node n9: of another job
"""
    assert read_verdicts(output, NODES, "no verdict") == {
        "n2": "scratch: No space left on device | all-reduce: no answer in 90 s",
        "n3": "no verdict",
    }
    assert read_verdicts("OK node n1\nOK node n2\nOK node n3\n", NODES, "no verdict") == {}


def test_who_misses_a_bad_nodes_file_is_not_bad_itself() -> None:
    blind = "visibility: sees the files of 2 of 3 nodes"
    lines = [f"BAD node n1: {blind}", "BAD node n2: shared folder: Stale file handle"]
    lines.append(f"BAD node n3: {blind}")
    assert list(read_verdicts("\n".join(lines), NODES, "")) == ["n2"]
    lines[1] = f"BAD node n2: {blind} | port: taken"
    assert list(read_verdicts("\n".join(lines), NODES, "")) == ["n2"]
    lines[1] = f"BAD node n2: {blind}"
    assert list(read_verdicts("\n".join(lines), NODES, "")) == NODES


def test_what_follows() -> None:
    assert judged({}, ALLOCATION, 3).why_not is None
    one = judged({"n2": "devices: gone"}, ALLOCATION, 3)
    assert (one.left_out, one.why_not) == (("n2",), "not fit to train: n2 (devices: gone)")
    enough = judged({"n2": "devices: gone"}, ALLOCATION, 2)
    assert (enough.left_out, enough.why_not) == (("n2",), None)
    all_of_them = judged(dict.fromkeys(NODES, "versions: torch not installed"), ALLOCATION, 1)
    assert all_of_them.left_out == ()
    assert "it is not the nodes; n1: versions" in str(all_of_them.why_not)
    alone = Allocation.from_environment({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1"})
    assert judged({"n1": "devices: gone"}, alone, 1).left_out == ("n1",)


def fake_srun(folder: Path, program: str) -> dict[str, str]:
    path = folder / "srun"
    path.write_text(f"#!{sys.executable} -IS\nimport sys, time\n{program}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {**BATCH, "PATH": f"{folder}:/usr/bin:/bin"}


def test_the_step(tmp_path: Path) -> None:
    program = f"open({str(tmp_path / 'words')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
    program += "print('OK node n1', 'OK node n3', sep='\\n', flush=True)\n"
    environ = fake_srun(tmp_path, program + "sys.exit(1)")
    bad = examine_nodes(["doctor", "--verdict"], ALLOCATION, environ)
    assert bad == {"n2": "the doctor ended without a verdict (1)"}
    words = (tmp_path / "words").read_text()
    assert words.startswith("--nodes=3 --ntasks=3 --ntasks-per-node=1 --kill-on-bad-exit=0")
    assert words.endswith("doctor --verdict")
    environ = fake_srun(tmp_path, program + "time.sleep(60)")
    wide = Allocation.from_environment({**BATCH, "SLURM_CPUS_PER_TASK": "8"})
    assert examine_nodes(["doctor"], wide, environ, seconds=1.0) == {"n2": "no verdict in 1 s"}
    assert (tmp_path / "words").read_text().endswith(" --cpus-per-task=16 doctor")


def test_ranks_keep_off_the_nodes_that_are_left_out() -> None:
    launcher = SrunLauncher(BATCH, Path("/no/run"), no_kill=False, ranks_per_task=4)
    assert launcher.world_size == 24
    launcher.leave_out(["n2"])
    assert launcher.world_size == launcher.look() == 16
    answer = "n1 down*\nn2 alloc\nn3 alloc"
    launcher = SrunLauncher(BATCH, Path("/no/run"), no_kill=True, ask=lambda _: answer)
    launcher.leave_out(["n2"])
    assert launcher.look() == 2


# ---------------------------------------------------------------------------- the end of such a job

JOB = Job(job_id="17", restart_count=1)


def test_it_is_written_down_and_found_by_the_end_of_the_same_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_down(run, judged({}, ALLOCATION, 3), "17", 1)
    assert not run.exists()
    write_down(run, judged({"n2": "devices: gone"}, ALLOCATION, 3), "17", 1)
    assert found_in_job(run, "17", 0) is None
    ending = ending_of(run, 0, 1, JOB)
    assert (ending.bad_nodes, ending.needs_fit_nodes) == (("n2",), True)
    assert ending.supervisor_said == "not fit to train: n2 (devices: gone)"
    assert not ending_of(run, 0, 1, Job(job_id="17", restart_count=0)).bad_nodes


def test_ranks_that_ran_on_the_others_are_judged_by_their_own_end(tmp_path: Path) -> None:
    """A crash stays a crash, though the job had a bad node."""
    write_down(tmp_path, judged({"n2": "devices: gone"}, ALLOCATION, 2), "17", 1)
    (tmp_path / "attempts" / "0001").mkdir(parents=True)
    ending = ending_of(tmp_path, 0, 143, JOB)
    assert (ending.bad_nodes, ending.needs_fit_nodes) == (("n2",), False)
    decision = decide(seen(State(), ending), [], max_fruitless=3)
    assert decision is not None
    assert not decision.requeue


def test_submissions_leave_out_what_was_bad_lately(tmp_path: Path) -> None:
    write_down(tmp_path, judged({"n3": "x", "n1": "y"}, ALLOCATION, 3), "17", 1)
    when = json.loads((tmp_path / "bad_nodes.jsonl").read_text())["seconds"]
    assert lately_bad(tmp_path, when + 60) == ("n1", "n3")
    assert lately_bad(tmp_path, when + REMEMBERED_SECONDS + 60) == ()


def test_a_requeue_tells_slurm_right_behind_it(tmp_path: Path) -> None:
    """Its list can't be changed before, and the requeue's TERM must not end the one who tells."""
    asked: list[Sequence[str]] = []

    def slurm(words: Sequence[str]) -> Answer:
        asked.append(words)
        if words[1] == "requeue":
            signal.raise_signal(signal.SIGTERM)
        is_early = words[1] == "update" and len(asked) < 6
        shown = "JobState=RUNNING Reason=None\n   ReqNodeList=(null) ExcNodeList=n[8-9]"
        return Answer(code=1, words="pending") if is_early else Answer(code=0, words=shown)

    ending = Ending(
        reason=None, exit_code=1, checkpoint=None, bad_nodes=("n2", "n9"), needs_fit_nodes=True
    )
    before = signal.getsignal(signal.SIGTERM)
    decision = end_job(tmp_path, JOB, ending, [], max_fruitless=3, ask=slurm, sleep=lambda _: None)
    assert decision.requeue
    assert signal.getsignal(signal.SIGTERM) is before
    assert [words[1] for words in asked] == [
        "show",
        "show",
        "requeue",
        "update",
        "update",
        "update",
    ]
    assert list(asked[-1][1:]) == ["update", "JobId=17", "ExcNodeList=n8,n9,n2"]
    (line,) = (tmp_path / "requeue.jsonl").read_text().splitlines()
    assert json.loads(line)["excluded"] == ["n2", "n9"]


def test_a_job_without_one_fit_node_leaves_for_good(tmp_path: Path) -> None:
    write_down(tmp_path, judged(dict.fromkeys(NODES, "versions: no torch"), ALLOCATION, 3), "17", 1)
    decision = decide(seen(State(), ending_of(tmp_path, 0, 1, JOB)), [], max_fruitless=3)
    assert decision is not None
    assert (decision.requeue, decision.exit_code) == (False, 1)
    assert "it is not the nodes" in decision.why
