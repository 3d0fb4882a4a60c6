"""Hostfiles, the commands of launchers on several hosts, and how a request to stop gets there."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.cli import main
from electra_dist.config import files
from electra_dist.errors import UserError
from electra_dist.launch.hostfile import Host, read_hostfile, read_variables
from electra_dist.launch.hosts import (
    RUNNERS,
    HostsJob,
    deepspeed_command,
    mpirun_command,
    pdsh_word,
    torchrun_commands,
    torchrun_ends,
)
from tests.unit.launch.scripts import run

WORDS = ("pretrain", "/work/c.toml", "--out", "/shared/RUN", "--seed", "3")


def made(tmp_path: Path) -> HostsJob:
    return HostsJob(
        hosts=(Host(name="node1", slots=2), Host(name="node2", slots=2)),
        hostfile=tmp_path / "hosts",
        words=WORDS,
        python=str(tmp_path / "python"),
        master_addr="node1",
        master_port=29501,
        folder=Path("/work"),
    )


def test_a_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# ours\n\nnode0 slots=8\n  me@10.0.0.2\tslots=4  max_slots=9\n")
    assert read_hostfile(path) == (
        Host(name="node0", slots=8),
        Host(name="me@10.0.0.2", slots=4),
    )
    assert read_hostfile(path)[1].address == "10.0.0.2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no host"),
        ("# only this\n", "names no host"),
        ("node0\n", "line 1 of"),
        ("a slots=1\n\nnode0 slots=0\n", "line 3 of"),
        ("node0 slots=two\n", "slots=two"),
        ("-oProxyCommand=x slots=1\n", "ProxyCommand"),
        ("$(x) slots=1\n", "node0 slots=8"),
        ("a slots=1\na slots=2\n", "names a again"),
    ],
)
def test_a_bad_hostfile_is_said_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        read_hostfile(path)
    assert words in str(caught.value)
    with pytest.raises(UserError, match="can't be read"):
        read_hostfile(tmp_path)


def test_variables(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.write_text("A=1\nNCCL_X = a b=c\n")
    here.write_text("A=2")
    assert read_variables([home, here]) == {"A": "2", "NCCL_X": "a b=c"}
    for bad in ("A", "# no", "", "A B=1", "export API_KEY=hunter2"):
        here.write_text(f"X=1\n{bad}\nY=2\n")
        with pytest.raises(UserError, match="line 2") as caught:
            read_variables([here])
        assert "hunter2" not in str(caught.value)  # it goes into a job's log


@pytest.mark.parametrize("runner", RUNNERS)
def test_deepspeed_is_started_as_by_the_script(tmp_path: Path, runner: str) -> None:
    job = made(tmp_path)
    variables = {"HOSTFILE": str(job.hostfile), "LAUNCHER": runner, "MASTER_ADDR": "node1"}
    script = run(tmp_path, "deepspeed.sh", *WORDS[1:], MASTER_PORT="29501", **variables)
    verb = deepspeed_command(job, runner, "")
    assert without_folders(script) == without_folders(verb)
    more = deepspeed_command(job, runner, "-x A=1")
    assert next(word for word in more if "launcher_args" in word).endswith("-x A=1")


def without_folders(words: list[str]) -> list[str]:
    return [str(Path(word).resolve()) if "__main__" in word else word for word in words]


def test_mpirun_is_started_as_by_the_script(tmp_path: Path) -> None:
    variables = {"HOSTS": "node1:2,node2:2", "MASTER_ADDR": "node1", "MASTER_PORT": "29501"}
    flags = {"NPROC": "4", "MPIRUN_FLAGS": "--tag-output -q"}
    script = run(tmp_path, "mpirun.sh", *WORDS[1:], **variables, **flags)
    assert script[0] == "mpirun"
    assert script[-len(WORDS) - 3] == str(tmp_path / "python")
    assert script == mpirun_command(made(tmp_path), "--tag-output -q")


def test_mpirun_shows_no_value_of_a_variable(tmp_path: Path) -> None:
    job = replace(made(tmp_path), variables={"AWS_SECRET": "s3cret", "LD_LIBRARY_PATH": "/opt"})
    command = mpirun_command(job)
    assert "s3cret" not in " ".join(command)
    assert command[command.index("AWS_SECRET") - 1] == "-x"
    assert "LD_LIBRARY_PATH=/opt" in command


def test_torchrun_is_started_as_by_the_script_on_each_host(tmp_path: Path) -> None:
    job = made(tmp_path)
    commands = torchrun_commands(job)
    for node, command in enumerate(commands):
        variables = {"NNODES": "2", "NPROC": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "29501"}
        script = run(tmp_path, "torchrun.sh", *WORDS[1:], NODE_RANK=str(node), **variables)
        there = shlex.split(command[-1])
        assert there[:6] == ["cd", "/work", "&&", "exec", "env", job.python]
        assert there[6:] == script[1:]
        assert command[0] == "ssh"
        assert command[-2] == f"node{node + 1}"
    assert len(torchrun_ends(job)) == 2


@given(word=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_word_comes_through_pdsh_as_it_was(word: str) -> None:
    quoted = pdsh_word(word)
    # deepspeed 0.19.8, PDSHRunner.parse_user_args; then pdsh; then the shell over there.
    if " " in quoted:
        quoted = '"{}"'.format(quoted.replace('"', '\\"'))
    assert quoted.replace("%%", "").count("%") == 0
    line = f"printf %s {quoted.replace('%%', '%')}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert done.stdout == word.encode()


def test_the_script_quotes_for_pdsh_too(tmp_path: Path) -> None:
    words = ['it\'s "$(x)" `y` \\ 100%h', "$x", "a\nb", "", "--p=*"]
    script = run(tmp_path, "deepspeed.sh", *words, HOSTFILE="h")
    for word, quoted in zip(words, script[-len(words) :], strict=True):
        there = '"{}"'.format(quoted.replace('"', '\\"')) if " " in quoted else quoted
        line = f"printf %s {there.replace('%%', '%')}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, check=True, text=True)
        assert done.stdout == word


def test_mistakes_of_submit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("no-such-host.invalid slots=2\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def said(way: str, *words: str) -> str:
        command = ["submit", way, "--recipe", "tiny", "--out", "RUN", "--hostfile", str(hosts)]
        assert main([*command, "--dry-run", *words]) == 2
        return capsys.readouterr().err

    assert "--master-addr" in said("torchrun")
    assert "--mpirun-args" in said("mpi", "--mpirun-args", "-x 'A=1")
    assert "2 slots" in said("mpi", "--batch.micro_batch_size", "32")
    (tmp_path / ".deepspeed_env").write_text("\n")
    assert ".deepspeed_env" in said("deepspeed")
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=a b\n")
    assert main(["submit", "mpi", "--recipe", "tiny", "--out", "RUN", "--hostfile", str(hosts),
                 "--master-addr", "x", "--dry-run"]) == 0  # fmt: skip
    assert "-x NCCL_DEBUG " in capsys.readouterr().out
    folder = tmp_path / "with blank"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert "without blanks" in said("deepspeed")


def test_a_run_that_is_there_needs_no_other_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=1\n")
    settled = files.load(None, ["--model.vocab_size", "300", "--seed", "7"], recipe="tiny")
    (tmp_path / "config.json").write_text(files.to_json(settled))
    words = ["submit", "mpi", "--out", str(tmp_path), "--hostfile", str(hosts), "--dry-run"]
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(f"electra_dist pretrain --out {tmp_path}\n")
    assert main([*words, "--seed", "8"]) == 2


LAUNCHER = """
import json, pathlib, signal, sys, time
run, obeys = pathlib.Path(sys.argv[1]), sys.argv[2] == "obeys"
(run / "attempts" / "0001").mkdir(parents=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
while not (obeys and (run / "STOP").exists()):
    time.sleep(0.02)
(run / "attempts" / "0001" / "exit.json").write_text(json.dumps({"reason": "asked"}))
"""
PARENT = """
import pathlib, sys
from electra_dist.launch import hosts_run
hosts_run.BURST_SECONDS = 0.3
run = pathlib.Path(sys.argv[1])
launcher = [sys.executable, "-c", sys.argv[2], str(run), sys.argv[3]]
sys.exit(hosts_run.run_on_hosts([launcher], {}, run, ends=[["touch", str(run / "ended")]]))
"""


@pytest.mark.parametrize(("behaviour", "code"), [("obeys", 75), ("ignores", 1)])
def test_the_first_signal_asks_and_a_later_one_ends(
    tmp_path: Path, behaviour: str, code: int
) -> None:
    words = [sys.executable, "-c", PARENT, str(tmp_path), LAUNCHER, behaviour]
    process = subprocess.Popen(words, start_new_session=True)
    try:
        wait_for((tmp_path / "attempts" / "0001").exists)
        process.send_signal(signal.SIGUSR1)
        wait_for((tmp_path / "STOP").exists)
        assert process.poll() is None or behaviour == "obeys"
        if behaviour == "ignores":
            time.sleep(0.4)  # out of the burst
            process.send_signal(signal.SIGTERM)
        assert process.wait(30.0) == code
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert (tmp_path / "ended").exists() == (behaviour == "ignores")
    exit_file = tmp_path / "attempts" / "0001" / "exit.json"
    assert behaviour == "ignores" or json.loads(exit_file.read_text()) == {"reason": "asked"}


def wait_for(is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.02)
