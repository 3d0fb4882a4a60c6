"""kill -9 of a corpus build at any moment: started again, it ends in the very same files."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from electra_dist.data.verify import verify_corpus
from tests.made_up import text

pytestmark = pytest.mark.chaos


@dataclass(frozen=True, kw_only=True)
class Place:
    """What is built, and what an undisturbed build of it gives."""

    folder: Path
    seconds: float
    """An undisturbed build takes so long."""
    calm: dict[str, bytes]

    def start(self, out: Path) -> subprocess.Popen[str]:
        """`corpus build` in a process group of its own, with two workers and duplicates to find."""
        words = ["corpus", "build", "--sources", str(self.folder / "sources.toml")]
        words += ["--out", str(out), "--workers", "2", "--vocab-size", "400"]
        words += ["--held-out-share", "0.05", "--shard-tokens", "100000"]
        return subprocess.Popen(
            [sys.executable, "-m", "electra_dist", *words],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def build(self, out: Path) -> str:
        """To the end; returns what was said on stderr."""
        process = self.start(out)
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        return said


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """About 2 MB in seven parts, some of it twice, with bad records."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "input").mkdir()
    for number in range(12):
        content = text(250, seed=number % 10).encode()
        (folder / "input" / f"{number:02d}.txt").write_bytes(content + b"\nnot UTF-8: \xff\n")
    (folder / "more.jsonl").write_text('{"text": "One more document."}\n' * 50)
    (folder / "sources.toml").write_text(
        f'[[source]]\ninput = "{folder}/input"\n'
        f'[[source]]\ninput = "{folder}/more.jsonl"\nkind = "jsonl"\nweight = 2\n'
    )
    place = Place(folder=folder, seconds=0.0, calm={})
    started = time.monotonic()
    place.build(folder / "calm")
    seconds = time.monotonic() - started
    assert verify_corpus(folder / "calm") == []
    return Place(folder=folder, seconds=seconds, calm=files_of(folder / "calm"))


@pytest.mark.parametrize("num_kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_killed_build_ends_like_the_calm_one(
    place: Place, tmp_path: Path, num_kills: int
) -> None:
    rng = random.Random(num_kills)
    out = tmp_path / "corpus"
    kills = 0
    while kills < num_kills or not out.exists():
        shutil.rmtree(out, ignore_errors=True)
        process = place.start(out)
        if kills < num_kills:
            time.sleep(rng.uniform(0.1, 1.0) * place.seconds)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
        _, said = process.communicate(timeout=240)
        assert process.returncode in (0, -signal.SIGKILL), said
        if out.exists():
            assert files_of(out) == place.calm


def workers_of(pid: int) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(pid).children()
        if any("spawn_main" in word for word in child.cmdline())
    ]


def wait_for_a_part(process: subprocess.Popen[str], out: Path) -> None:
    parts = out.with_name(out.name + ".building") / "parts"
    while process.poll() is None and not list(parts.glob("part_*")):
        time.sleep(0.01)
    assert process.poll() is None, "the build ended before it could be disturbed"


def test_a_killed_worker_is_one_sentence_and_no_loss(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    process = place.start(out)
    wait_for_a_part(process, out)
    workers_of(process.pid)[0].kill()
    _, said = process.communicate(timeout=240)
    assert process.returncode == 2
    assert said.startswith("electra-dist: a worker of the build was killed")
    assert said.count("\n") == 1
    assert "going on with" in place.build(out)
    assert files_of(out) == place.calm


def test_workers_end_with_their_parent(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    process = place.start(out)
    wait_for_a_part(process, out)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    place.build(out)
    assert files_of(out) == place.calm


def wait_for_workers(process: subprocess.Popen[str], _out: Path) -> None:
    """Python has begun in both, and half a second of imports lies before them."""
    while process.poll() is None and sum(map(handles_interrupts, workers_of(process.pid))) < 2:
        time.sleep(0.005)


def handles_interrupts(process: psutil.Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught & 1 << signal.SIGINT - 1)


@pytest.mark.parametrize("moment", [wait_for_workers, wait_for_a_part])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_may_be_stopped_by_hand(
    place: Place,
    tmp_path: Path,
    number: int,
    moment: Callable[[subprocess.Popen[str], Path], None],
) -> None:
    out = tmp_path / "corpus"
    # Behind a shell's `&` SIGINT is ignored, and what is ignored stays so in a child.
    old = signal.signal(number, signal.SIG_DFL)
    try:
        process = place.start(out)
    finally:
        signal.signal(number, old)
    moment(process, out)
    workers = workers_of(process.pid)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGTERM)
    assert "Traceback" not in said
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    place.build(out)
    assert files_of(out) == place.calm
