"""The scripts of launchers/, with programs in place of the launchers that print their arguments."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.launch import scripts
from tests.unit.launch.scripts import LAUNCHERS

TAIL = ["pretrain", "my config.toml", "--out", "RUN"]


def run(tmp_path: Path, name: str, **variables: str) -> list[str]:
    return scripts.run(tmp_path, name, *TAIL[1:], **variables)


def test_local(tmp_path: Path) -> None:
    words = run(tmp_path, "local.sh", NPROC="3")
    assert words == ["python", "-m", "electra_dist", *TAIL, "--nproc", "3"]
    assert run(tmp_path, "local.sh", GPUS="4")[-2:] == ["--nproc", "4"]


def test_torchrun(tmp_path: Path) -> None:
    words = run(tmp_path, "torchrun.sh", NNODES="2", NODE_RANK="1", NPROC="8", MASTER_ADDR="node 0")
    flags = dict(zip(words[3:-6:2], words[4:-6:2], strict=True))
    assert words[:3] == ["python", "-m", "torch.distributed.run"]
    assert words[-6:] == ["-m", "electra_dist", *TAIL]
    assert (flags["--nnodes"], flags["--node-rank"], flags["--nproc-per-node"]) == ("2", "1", "8")
    assert flags["--master-addr"] == "node 0"


def test_deepspeed(tmp_path: Path) -> None:
    words = run(tmp_path, "deepspeed.sh", NPROC="2")
    assert words[-5:] == ["electra_dist", *TAIL]
    assert {"--no_local_rank", "--module", "--num_gpus"} <= set(words)
    assert "--hostfile" not in words
    words = run(tmp_path, "deepspeed.sh", HOSTFILE="my hosts", MASTER_ADDR="h1")
    assert words[words.index("--hostfile") + 1] == "my hosts"
    assert words[words.index("--master_addr") + 1] == "h1"


def test_mpirun(tmp_path: Path) -> None:
    words = run(tmp_path, "mpirun.sh", NPROC="4", MPIRUN_FLAGS="--oversubscribe -q")
    assert words[-7:] == [str(tmp_path / "python"), "-m", "electra_dist", *TAIL]
    assert words[1:7] == ["--oversubscribe", "-q", "-np", "4", "--bind-to", "none"]
    words = run(tmp_path, "mpirun.sh", HOSTS="h1:2,h2:2", MASTER_ADDR="h1")
    assert "MASTER_ADDR=h1" in words
    with pytest.raises(subprocess.CalledProcessError):
        run(tmp_path, "mpirun.sh", HOSTS="h1:2,h2:2")


@pytest.mark.parametrize("name", ["local.sh", "torchrun.sh", "deepspeed.sh", "mpirun.sh"])
def test_each_is_short_and_executable(name: str) -> None:
    script = LAUNCHERS / name
    assert os.access(script, os.X_OK)
    assert len(script.read_text().splitlines()) < 40
