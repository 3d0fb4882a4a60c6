"""One tiny run under each real launcher of this machine: the same numbers, bit for bit."""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from electra_dist.checkpoint.layout import list_checkpoints, read_manifest
from electra_dist.launch.local import free_port
from tests.cluster.launched import ROOT, SECONDS, TINY, finish, started
from tests.made_up import corpus

pytestmark = pytest.mark.cluster

DEEPSPEED = ["--engine.kind", "deepspeed"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps; 3 micro-batches for 2 ranks, so that one rank repeats a pass."""
    folder = tmp_path_factory.mktemp("launchers")
    path = folder / "tiny.toml"
    path.write_text(TINY.format(corpus=corpus(folder / "made", length=32)))
    return path


def run_with_nproc(config: Path, run: Path, *words: str) -> list[Any]:
    """What the other launchers are compared with: `electra-dist pretrain --nproc 2`."""
    command = [sys.executable, "-m", "electra_dist", "pretrain", config, "--out", run, *words]
    return finish(run, *command, "--nproc", "2", launcher="environment")


@pytest.fixture(scope="module")
def numbers(config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_with_nproc(config, tmp_path_factory.mktemp("nproc") / "run")


@pytest.mark.slow  # test_hosts.py has torchrun on two hosts
def test_torchrun(config: Path, numbers: list[Any], tmp_path: Path) -> None:
    command = [ROOT / "launchers" / "torchrun.sh", config, "--out", tmp_path / "run"]
    port = str(free_port())
    assert numbers == finish(tmp_path / "run", *command, launcher="torchrun", MASTER_PORT=port)


@pytest.mark.needs_mpi
def test_mpirun(config: Path, numbers: list[Any], tmp_path: Path) -> None:
    """Without MASTER_PORT: the ranks agree on one from the name of the MPI job."""
    command = [ROOT / "launchers" / "mpirun.sh", config, "--out", tmp_path / "run"]
    variables = {
        "MPIRUN_FLAGS": "--oversubscribe",  # two ranks on however few cores
        "OMPI_ALLOW_RUN_AS_ROOT": "1",  # containers of a CI have no other user
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    assert numbers == finish(tmp_path / "run", *command, launcher="openmpi", **variables)


@pytest.mark.slow  # test_hosts.py has the same script on two hosts
def test_deepspeed(config: Path, tmp_path: Path) -> None:
    """DeepSpeed's engine under its own launcher and under ours."""
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    run = tmp_path / "theirs" / "run"
    command = [ROOT / "launchers" / "deepspeed.sh", config, "--out", run, *DEEPSPEED]
    theirs = finish(run, *command, launcher="environment", MASTER_PORT=str(free_port()))
    assert theirs == run_with_nproc(config, tmp_path / "ours" / "run", *DEEPSPEED)


def test_sigterm_to_the_parent_saves_and_exits_75(config: Path, tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "output.txt"
    command = [sys.executable, "-m", "electra_dist", "pretrain", config, "--out", run]
    endless = ["--schedule.num_steps", "1000000", "--metrics.eval_every", "1000000"]
    with started(*command, *endless, "--nproc", "2", output=output) as process:
        deadline = time.monotonic() + SECONDS
        while not (run / "metrics.jsonl").exists():
            assert process.poll() is None, output.read_text(errors="replace")[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 75, output.read_text(errors="replace")[-4000:]
    ended = json.loads((run / "attempts" / "0001" / "exit.json").read_text())
    (saved,) = list_checkpoints(run)
    assert ended == {
        "reason": "stopped",
        "step": saved.step,
        "checkpoint": saved.folder.name,
        "exit_code": 75,
    }
    assert len(read_manifest(saved.folder).shards) == 2
    assert saved.step >= 1
    last = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["reason"], last["cause"]) == ("stop", "stopped", "SIGTERM")
