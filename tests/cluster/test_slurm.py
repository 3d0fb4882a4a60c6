"""Job scripts and the command line in a real Slurm of four virtual nodes."""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.config.slurm_names import expand_hostlist
from tests.cluster.site import ROOT, Site, assert_same_weights, electra, numbers

pytestmark = [pytest.mark.cluster, pytest.mark.needs_slurm]


def test_a_job_trains_to_the_end_as_without_slurm(site: Site, tmp_path: Path) -> None:
    """2 nodes of 2 ranks, slurm/pretrain.sbatch as it is."""
    run = tmp_path / "run"
    job = site.submit(run, tasks=2)
    site.finished(job, run, attempts=1, tasks=2)
    facts = json.loads((run / "environment.json").read_text())
    assert (facts["launcher"], facts["world_size"]) == ("slurm", 4)
    status = json.loads(electra("status", job, "--json", environ=site.lab.environ))
    assert (status["folder"], status["state"]) == (str(run), "finished")
    assert [(one["job"], one["state"]) for one in status["slurm"]] == [(job, "COMPLETED")]


@pytest.mark.slow
def test_deepspeed_in_a_job(site: Site, tmp_path: Path) -> None:
    """DeepSpeed's engine on 2 nodes, and the same ranks without Slurm."""
    words = ("--engine.kind", "deepspeed", "--engine.zero_stage", "2")
    run, calm = tmp_path / "run", tmp_path / "calm"
    job = site.submit(run, words=words)
    site.end(job, run, "COMPLETED")
    electra("pretrain", site.config, "--out", calm, "--nproc", 2, *words)
    assert_same_weights(run, calm)
    assert numbers(run) == numbers(calm)


SITES = sorted((ROOT / "slurm" / "clusters").glob("*.toml"))
TYPED = """
gpus_per_node = 4
cpus_per_task = 1
exclusive = true
time = "1:00:00"
partition = "main"
network_interface = "ib0"
scratch = "$TMPDIR"
"""


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_slurm_accepts_the_script_of_every_site(site: Site, tmp_path: Path, path: Path) -> None:
    """With what only that site has (partition, GPU type, cores) in this Slurm's own words."""
    values = tomllib.loads(path.read_text())
    kept = {
        name: value
        for name, value in values.items()
        if name not in ("partition", "gpu_type", "gpus_per_node", "tasks_per_node", "container")
    }
    kept |= {"partition": "main", "cpus_per_task": 1}
    kept |= {"gpus_per_node": 4} if values.get("gpus_per_node") else {"tasks_per_node": 4}
    cluster = tmp_path / "here.toml"
    cluster.write_text("\n".join(f"{name} = {toml(value)}" for name, value in kept.items()))
    words = ["submit", "slurm", site.config, "--out", tmp_path / "a run", "--cluster", cluster]
    answer = electra(*words, "--test-only", "--nodes", "1", environ=site.lab.environ)
    assert "to start at" in answer
    assert "nodes n1" in answer
    text = (tmp_path / "a run" / "submit.sbatch").read_text()
    assert ("--gres=gpu:4" in text) == bool(values.get("gpus_per_node"))


def toml(value: object) -> str:
    """As TOML writes it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {toml(one)}" for name, one in value.items()) + " }"
    return json.dumps(value)


def test_what_slurm_refuses_is_said_in_one_sentence(site: Site, tmp_path: Path) -> None:
    cluster = tmp_path / "here.toml"
    cluster.write_text('partition = "nowhere"\n')
    words = ["submit", "slurm", site.config, "--out", tmp_path / "run", "--cluster", cluster]
    answer = electra(*words, "--test-only", code=2, environ=site.lab.environ)
    assert "invalid partition specified: nowhere" in answer
    assert len(answer.splitlines()) == 1


@pytest.mark.parametrize("name", ["corpus.sbatch", "finetune_array.sbatch", "pretrain.sbatch"])
def test_slurm_accepts_the_scripts_that_lie_there(site: Site, name: str) -> None:
    flags = ["--test-only", "--cpus-per-task=2", "--gres=gpu:1", "--time=10", "--array=0-9%4"]
    done = subprocess.run(
        ["sbatch", *flags, str(ROOT / "slurm" / name)],
        env=site.lab.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_job_is_told_its_fake_gpus(site: Site, tmp_path: Path) -> None:
    """A written script that really runs, from a folder with blanks, quotes and % in its name."""
    cluster = tmp_path / "here.toml"
    cluster.write_text(TYPED.replace("ib0", "lo"))
    run = tmp_path / "50% o'clock $(touch PWNED)" / "run"
    words = ["submit", "slurm", site.config, "--out", run, "--cluster", cluster]
    seen = tmp_path / "rank.sh"
    seen.write_text('#!/bin/bash\necho "$CUDA_VISIBLE_DEVICES $NCCL_SOCKET_IFNAME $*" >> "$SEEN"\n')
    seen.chmod(0o755)
    words += ["--resilience.max_restarts", "0", "--data.corpus", "a b'$(touch PWNED)"]
    variables = {
        "ELECTRA_DIST_RANK_COMMAND": str(seen),
        "SEEN": str(tmp_path / "seen"),
        "TMPDIR": "/tmp",
    }
    job = electra(*words, environ={**site.lab.environ, **variables}).strip()
    site.lab.wait_for(job, ("COMPLETED", "FAILED"), 60.0)
    lines = (tmp_path / "seen").read_text().splitlines()
    assert len(lines) == 4
    expected = f"pretrain {site.config} --out {run} --resilience.max_restarts 0"
    assert set(lines) == {f"0,1,2,3 lo {expected} --data.corpus a b'$(touch PWNED)"}
    assert list(run.glob("slurm-*.out"))
    assert not list(ROOT.glob("PWNED"))


@given(st.data())
@settings(max_examples=60)
def test_hostlists_as_scontrol_reads_them(site: Site, data: st.DataObject) -> None:
    word = st.text("abxn-", min_size=1, max_size=4).filter(lambda text: text[0] != "-")
    number = st.integers(0, 120)

    @st.composite
    def name(draw: st.DrawFn) -> str:
        """Slurm takes nothing behind the last bracket."""
        text = draw(word)
        for place in range(draw(st.integers(0, 2))):
            width = draw(st.integers(1, 4))
            ranges = []
            for _ in range(draw(st.integers(1, 3))):
                first, length = draw(number), draw(st.integers(0, 4))
                last = f"-{first + length:0{width}d}" if length else ""
                ranges.append(f"{first:0{width}d}{last}")
            text += (draw(word) if place else "") + f"[{','.join(ranges)}]"
        return text

    hostlist = ",".join(data.draw(st.lists(name(), min_size=1, max_size=3)))
    expected = site.lab.run("scontrol", "show", "hostnames", hostlist).split()
    assert expand_hostlist(hostlist) == expected
