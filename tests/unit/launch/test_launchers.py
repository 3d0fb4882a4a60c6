"""The scripts of launchers/, with programs in place of the launchers that print their arguments."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCHERS = Path(__file__).parents[3] / "launchers"
TAIL = ["pretrain", "my config.toml", "--out", "RUN"]


def run(tmp_path: Path, name: str, **variables: str) -> list[str]:
    """The command that the script would exec, one word a line."""
    for program in ("python", "deepspeed", "mpirun", "nvidia-smi"):
        path = tmp_path / program
        text = "exit 9" if program == "nvidia-smi" else f"printf '%s\\n' {program} \"$@\""
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    if "GPUS" in variables:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n" + "echo gpu\n" * int(variables["GPUS"]))
    else:
        (tmp_path / "nvidia-smi").unlink()
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    command = [str(LAUNCHERS / name), *TAIL[1:]]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


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
    assert words[-7:] == ["python", "-m", "electra_dist", *TAIL]
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
