"""corpus.sbatch and finetune_array.sbatch as they lie there, and chains of jobs."""

import json
import sys
from pathlib import Path

import pytest

from tests.cluster.site import ROOT, Site, electra
from tests.made_up import text

pytestmark = [pytest.mark.cluster, pytest.mark.needs_slurm, pytest.mark.slow]


def submit(site: Site, name: str, folder: Path, *flags: str, words: list[object]) -> str:
    script = ROOT / "slurm" / name
    output = f"--output={folder}/%A_%a.out"
    environ = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "LENGTHS": "32 64"}
    return site.lab.submit(output, *flags, script, *map(str, words), **environ)


def test_a_corpus(site: Site, tmp_path: Path) -> None:
    source = tmp_path / "a text.txt"
    source.write_text(text(60))
    corpus = tmp_path / "corpus"
    words = [corpus, "--input", source, "--tokenizer", "train", "--vocab-size", 300]
    job = submit(site, "corpus.sbatch", tmp_path, "--cpus-per-task=2", words=words)
    state = site.lab.wait_for(job, ("COMPLETED", "FAILED"), 120.0)["JobState"]
    said = "\n".join(path.read_text() for path in tmp_path.glob("*.out"))
    assert state == "COMPLETED", said
    assert {path.name for path in corpus.glob("pack_*")} == {"pack_32_full", "pack_64_full"}


def test_an_array_of_tasks_and_seeds(site: Site, tmp_path: Path) -> None:
    model = tmp_path / "model"
    newest = site.calm(2) / "checkpoints" / f"step_{40:08d}"
    electra("checkpoint", "export", "hf", newest, "--out", model)
    for part, number in (("train", 24), ("dev", 12)):
        path = tmp_path / "data" / "sst2" / f"{part}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"bade kilomu {i}\t{i % 2}" for i in range(number)]
        path.write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    out = tmp_path / "out"
    words = [model, out, "sst2", "3 5", tmp_path / "data"]
    job = submit(site, "finetune_array.sbatch", tmp_path, "--array=0-1%1", words=words)
    for task in range(2):
        state = site.lab.wait_for(f"{job}_{task}", ("COMPLETED", "FAILED"), 120.0)["JobState"]
        said = "\n".join(path.read_text() for path in tmp_path.glob("*.out"))
        assert state == "COMPLETED", said
    assert {path.name for path in (out / "sst2").iterdir()} == {"seed_3", "seed_5"}


def test_a_chain_goes_on_job_by_job_and_ends_with_the_run(site: Site, tmp_path: Path) -> None:
    """Three jobs: the first is stopped, the second finishes, the third is not started."""
    run = tmp_path / "run"
    cluster = tmp_path / "here.toml"
    cluster.write_text('partition = "main"\n')
    script = tmp_path / "run" / "submit.sbatch"
    words = ["--out", run, "--cluster", cluster, "--nodes", "2", "--chain", "3"]
    environ = {
        **site.lab.environ,
        "MASTER_ADDR": "127.0.0.1",
        "ELECTRA_DIST_FAULTS": "slow rank=0 step=1:99 seconds=0.2",
    }
    jobs = electra("submit", "slurm", site.config, *words, environ=environ).split()
    assert len(jobs) == 3
    assert "--no-requeue" in script.read_text()
    site.reach(jobs[0], run, 5)
    # As a time limit does: USR1 to the batch shell.
    site.lab.run("scancel", "--batch", "--signal=USR1", jobs[0])
    site.lab.wait_for(jobs[0], ("FAILED",), 60.0)
    site.lab.wait_for(jobs[1], ("COMPLETED",), 120.0)
    site.lab.wait_for(jobs[2], ("CANCELLED",), 60.0)
    status = json.loads(electra("status", run, "--json"))
    assert (status["state"], len(status["attempts"])) == ("finished", 2)
