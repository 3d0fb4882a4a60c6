"""A compilation that was killed must not make later starts hang."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from electra_dist.runtime.extensions import FOLDER_VARIABLE, claim_extensions

CLAIM_AND_COMPILE = """
import os, sys, time
from pathlib import Path
from electra_dist.runtime.extensions import claim_extensions
print(len(claim_extensions(os.environ)), flush=True)
lock = Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "kernel" / "lock"
lock.parent.mkdir(exist_ok=True)
lock.touch()
time.sleep(600)
"""


@pytest.fixture
def compiling(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that holds its claim and a compilation's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM_AND_COMPILE],
        env={**os.environ, FOLDER_VARIABLE: str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    while not (tmp_path / "kernel" / "lock").exists():
        assert process.poll() is None
    return process


def test_a_lock_of_the_living_stays_and_of_the_dead_goes(
    tmp_path: Path, compiling: subprocess.Popen[str]
) -> None:
    environ = {FOLDER_VARIABLE: str(tmp_path)}
    with compiling:
        assert claim_in_a_child(environ) == "[]"
        assert (tmp_path / "kernel" / "lock").exists()
        compiling.kill()
    assert "kernel/lock" in claim_in_a_child(environ)
    assert not (tmp_path / "kernel" / "lock").exists()


def claim_in_a_child(environ: dict[str, str]) -> str:
    program = (
        "import os; from electra_dist.runtime.extensions import claim_extensions;"
        "print([str(one) for one in claim_extensions(os.environ)])"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environ},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def test_each_environment_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = set()
    for prefix in ("/one", "/two"):
        monkeypatch.setattr(sys, "prefix", prefix)
        environ = {"XDG_CACHE_HOME": str(tmp_path)}
        claim_extensions(environ)
        folders.add(environ[FOLDER_VARIABLE])
    assert len(folders) == 2
    assert all(Path(folder).is_dir() and folder.startswith(str(tmp_path)) for folder in folders)
