"""One tiny run on two hosts that only ssh leads to: 2 ranks on each, by each launcher."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from electra_dist.checkpoint.layout import list_checkpoints, read_manifest
from electra_dist.launch.hostfile import read_hostfile
from electra_dist.launch.hosts import HostsJob, torchrun_ends
from electra_dist.launch.local import free_port
from tests.cluster.launched import ROOT, TINY, finish, started
from tests.cluster.ssh_lab import SshLab, ssh_lab
from tests.made_up import corpus

pytestmark = [pytest.mark.cluster, pytest.mark.needs_ssh]

SECONDS = 400.0
"""Four ranks and three launchers that import torch take 20 s on 2 idle cores: this is a hang."""

ELECTRA = (sys.executable, "-m", "electra_dist")
STEP = ("--batch.global_batch_size", "24", "--engine.timeout_seconds", "120")
"""6 micro-batches for 4 ranks, so that two ranks repeat a pass."""
ENDLESS = (*STEP, "--schedule.num_steps", "1000000", "--metrics.eval_every", "1000000")
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshLab]:
    with ssh_lab(tmp_path_factory.mktemp("ssh") / "lab") as lab:
        (lab.folder / "hosts").write_text("# two of them\nnode1 slots=2\n\nnode2 slots=2\n")
        yield lab


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a folder whose name does harm if a shell reads it."""
    folder = tmp_path_factory.mktemp("hosts")
    path = folder / 'it\'s "$(exit 9)" `exit 9` 100%h \\ ;' / "tiny.toml"
    path.parent.mkdir()
    path.write_text(TINY.format(corpus=corpus(folder / "made", length=32)))
    return path


@pytest.fixture(scope="module")
def numbers(config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What all are compared with: the same ranks on one host."""
    run = tmp_path_factory.mktemp("nproc") / "run"
    command = [*ELECTRA, "pretrain", config, "--out", run, *STEP, "--nproc", "4"]
    return finish_4(run, *command, launcher="environment")


def finish_4(run: Path, *command: str | Path, launcher: str) -> list[Any]:
    return finish(run, *command, launcher=launcher, num_ranks=4, seconds=SECONDS, **AS_ROOT)


def submit(lab: SshLab, way: str, config: Path, run: Path, *words: str) -> list[str]:
    """`electra-dist submit` on the login node."""
    command = [*ELECTRA, "submit", way, config, "--out", run, "--hostfile", lab.folder / "hosts"]
    return lab.login(*command, *words)


@pytest.mark.parametrize(
    ("way", "launcher"),
    [
        ("deepspeed", "environment"),
        pytest.param("mpi", "openmpi", marks=pytest.mark.needs_mpi),
        ("torchrun", "torchrun"),
        pytest.param(
            *("deepspeed --launcher openmpi", "openmpi"),
            marks=[pytest.mark.needs_mpi, pytest.mark.slow],
        ),
    ],
)
def test_two_hosts_give_the_numbers_of_one(
    lab: SshLab, config: Path, numbers: list[Any], tmp_path: Path, way: str, launcher: str
) -> None:
    run = tmp_path / "a run" / "run"
    run.parent.mkdir()
    name, *words = way.split()
    command = submit(lab, name, config, run, *words, *STEP)
    assert finish_4(run, *command, launcher=launcher) == numbers
    assert {host_of(path) for path in (run / "heartbeat").iterdir()} == {"node1", "node2"}
    assert_nothing_is_left(lab, run)


@pytest.mark.slow
def test_deepspeeds_engine_on_two_hosts(lab: SshLab, config: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    engine = (*STEP, "--engine.kind", "deepspeed", "--engine.zero_stage", "2")
    one, two = (tmp_path / name / "run" for name in ("one", "two"))
    command = [*ELECTRA, "pretrain", config, "--out", one, *engine, "--nproc", "4"]
    numbers = finish_4(one, *command, launcher="environment")
    command = submit(lab, "deepspeed", config, two, *engine)
    assert finish_4(two, *command, launcher="environment") == numbers


@pytest.mark.parametrize(
    ("script", "number", "code"),
    [
        ("deepspeed.sh", signal.SIGTERM, 1),  # the launcher's own, whatever its ranks do
        pytest.param(
            *("mpirun.sh", signal.SIGUSR1, 75), marks=[pytest.mark.needs_mpi, pytest.mark.slow]
        ),
    ],
)
def test_a_signal_to_a_launcher_saves_on_both_hosts(
    lab: SshLab, config: Path, tmp_path: Path, script: str, number: signal.Signals, code: int
) -> None:
    run, output = tmp_path / "run", tmp_path / "output.txt"
    command = lab.login(ROOT / "launchers" / script, config, "--out", run, *ENDLESS)
    variables = {"HOSTFILE": str(lab.folder / "hosts"), "NPROC": "2"}
    if script == "mpirun.sh":
        variables = {"HOSTS": "node1:2,node2:2", "NPROC": "4", **AS_ROOT}
    with started(*command, output=output, MASTER_ADDR="node1", **variables) as process:
        wait_for((run / "metrics.jsonl").exists, process, output)
        process.send_signal(number)
        wait_for((run / "attempts" / "0001" / "exit.json").exists, None, output)
        assert process.wait(SECONDS) == code, output.read_text(errors="replace")[-4000:]
    ended = exit_of(run, 1)
    (saved,) = list_checkpoints(run)
    assert (ended["reason"], ended["checkpoint"]) == ("stopped", saved.folder.name)
    assert len(read_manifest(saved.folder).shards) == 4
    assert_nothing_is_left(lab, run)


@pytest.mark.slow
def test_the_command_that_ends_torchrun_reaches_both_hosts(
    lab: SshLab, config: Path, tmp_path: Path
) -> None:
    run, output = tmp_path / "run", tmp_path / "output.txt"
    job = HostsJob(
        hosts=read_hostfile(lab.folder / "hosts"),
        hostfile=lab.folder / "hosts",
        words=(),
        python=sys.executable,
        master_addr="node1",
        master_port=free_port(),
        folder=ROOT,
    )
    command = submit(lab, "torchrun", config, run, *ENDLESS, "--master-port", str(job.master_port))
    with started(*command, output=output) as process:
        wait_for((run / "metrics.jsonl").exists, process, output)
        for end in torchrun_ends(job):
            subprocess.run(lab.login(*end), check=True)
        assert process.wait(SECONDS) == 75, output.read_text(errors="replace")[-4000:]
    assert exit_of(run, 1)["reason"] == "stopped"
    assert_nothing_is_left(lab, run)


@pytest.mark.parametrize("how", ["power", pytest.param("link", marks=pytest.mark.slow)])
def test_a_dead_host_ends_the_run_and_the_same_command_goes_on(
    lab: SshLab, config: Path, tmp_path: Path, how: str
) -> None:
    run, output = tmp_path / "run", tmp_path / "output.txt"
    words = [*ENDLESS, "--checkpoint.every_steps", "5", "--engine.timeout_seconds", "20"]
    command = submit(lab, "deepspeed", config, run, *words)
    alive = "-o ServerAliveInterval=3 -o ServerAliveCountMax=3"
    with started(*command, output=output, PDSH_SSH_ARGS_APPEND=alive) as process:
        wait_for(lambda: list_checkpoints(run), process, output)
        try:
            if how == "power":
                lab.power_off("node2")
            else:
                lab.hosts.link(2, "down")
            assert process.wait(SECONDS) == 1, output.read_text(errors="replace")[-4000:]
        finally:
            if how == "power":
                lab.start("node2")
            else:
                lab.hosts.link(2, "up")
    assert exit_of(run, 1)["reason"] in ("failed", "hang")
    assert_nothing_is_left(lab, run)

    newest = list_checkpoints(run)[-1].step
    with started(*command, output=output) as process:
        wait_for(lambda: list_checkpoints(run)[-1].step > newest, process, output)
        subprocess.run([*ELECTRA, "stop", str(run)], check=True, cwd=ROOT)
        assert process.wait(SECONDS) == 0, output.read_text(errors="replace")[-4000:]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert newest in [event["step"] for event in events if event["event"] == "resume"]
    assert exit_of(run, 2)["reason"] == "asked"
    assert exit_of(run, 2)["checkpoint"] == list_checkpoints(run)[-1].folder.name
    assert_nothing_is_left(lab, run)


def host_of(heartbeat: Path) -> str:
    host: str = json.loads(heartbeat.read_text())["host"]
    return host


def exit_of(run: Path, attempt: int) -> dict[str, Any]:
    path = run / "attempts" / f"{attempt:04}" / "exit.json"
    ended: dict[str, Any] = json.loads(path.read_text())
    return ended


def wait_for(
    is_there: Callable[[], Any], process: subprocess.Popen[bytes] | None, output: Path
) -> None:
    """Wait for it while the launcher runs; without one, however long that takes."""
    deadline = time.monotonic() + SECONDS
    while not is_there():
        said = output.read_text(errors="replace")[-4000:]
        assert process is None or process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.05)


def assert_nothing_is_left(lab: SshLab, run: Path) -> None:
    """No rank or launcher of the run on either host, or soon none."""
    deadline = time.monotonic() + 60.0
    while left := [found for name in lab.names for found in lab.processes(name, str(run))]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
