"""What a user does on a login node, with the packages of requirements/login.txt and no others."""

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
forbidden, words = set(sys.argv[1].split(",")), sys.argv[2:]

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from electra_dist.cli import main
sys.exit(main(words))
"""


def forbidden_modules() -> list[str]:
    """Whatever is installed here and is not in login.txt."""
    text = (ROOT / "requirements" / "login.txt").read_text()
    allowed = {name.lower() for name in re.findall(r"^([A-Za-z0-9_.-]+)==", text, re.MULTILINE)}
    allowed.add("electra-dist")
    return [
        module
        for module, owners in packages_distributions().items()
        if module.isidentifier()
        and module != "electra_dist"
        and not allowed & {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}
    ]


@pytest.fixture(scope="module")
def forbidden() -> str:
    names = forbidden_modules()
    assert {"torch", "numpy", "transformers", "safetensors"} <= set(names)
    return ",".join(names)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of a run folder as these commands read."""
    folder = tmp_path_factory.mktemp("login") / "run"
    checkpoint = folder / "checkpoints" / "step_00000007"
    checkpoint.mkdir(parents=True)
    (folder / "attempts" / "0001").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "hosts").write_text("localhost slots=1\n")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "submit slurm --help",
        "checkpoint list {run}",
        "status {run} --json",
        "config show --recipe tiny",
        "submit slurm --recipe tiny --out {run}_2 --cluster cpu_site --seed 3 --dry-run",
        "submit deepspeed --recipe tiny --out {run}_2 --hostfile {run}/hosts --dry-run",
        "submit submitit --recipe tiny --out {run}_2 --cluster cpu_site --seed 3 --dry-run",
    ],
)
def test_it_works_without_anything_heavy(words: str, forbidden: str, run: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, forbidden, *words.format(run=run).split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "--json" in words:
        assert json.loads(done.stdout)["state"]
    if "--dry-run" in words:
        assert done.stdout.startswith(("#!/bin/bash\n", "deepspeed --no_local_rank"))
        if "--cluster" in words:
            assert "\n#SBATCH --partition=short\n" in done.stdout
