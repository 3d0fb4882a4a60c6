"""The scripts of launchers/, with programs in place of the launchers that print their words."""

import os
import subprocess
from pathlib import Path

LAUNCHERS = Path(__file__).parents[3] / "launchers"


def run(tmp_path: Path, name: str, *words: str, **variables: str) -> list[str]:
    """The command that the script would exec with these words: python is in `tmp_path`."""
    for program in ("python", "deepspeed", "mpirun", "nvidia-smi"):
        path = tmp_path / program
        text = "exit 9" if program == "nvidia-smi" else f"printf '%s\\0' {program} \"$@\""
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    if "GPUS" in variables:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n" + "echo gpu\n" * int(variables["GPUS"]))
    else:
        (tmp_path / "nvidia-smi").unlink()
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    command = [str(LAUNCHERS / name), *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]
