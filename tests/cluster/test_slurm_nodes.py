"""What a job does with its nodes: one launcher on each, and bad ones left out."""

import json
import sys
from pathlib import Path

import pytest

from electra_dist.launch.records import read_lines
from tests.cluster.site import ROOT, Site, assert_same_weights, electra, numbers

pytestmark = [pytest.mark.cluster, pytest.mark.needs_slurm]

RANK = """\
#!/bin/bash
# On one node the driver has died.
if [[ $SLURMD_NODENAME == n1 ]]; then PATH="{bin}:$PATH"; fi
exec "{python}" -m electra_dist "$@"
"""
SMI = "#!/bin/sh\necho 'Unable to determine the device handle: Unknown Error' >&2\nexit 1\n"


def submitted(site: Site, run: Path, cluster: str, nodes: int, *words: object, **more: str) -> str:
    """`electra-dist submit slurm`; returns the job's id."""
    path = run.parent / "here.toml"
    path.write_text(f'partition = "main"\ntime = "30:00"\n{cluster}\n')
    # Virtual nodes have no names of their own in the DNS.
    network = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    environ = {**site.lab.environ, **network, "PYTHONPATH": str(ROOT), **more}
    where = ["--out", run, "--cluster", path, "--nodes", nodes]
    return electra("submit", "slurm", site.config, *where, *words, environ=environ).strip()


def words_of(site: Site, run: Path) -> str:
    return "\n".join(path.read_text() for path in run.glob("slurm-*.out")) + site.lab.state()


def completed(site: Site, job: str, run: Path) -> None:
    state = site.lab.wait_for(job, ("COMPLETED", "FAILED", "CANCELLED"), 400.0)["JobState"]
    assert state == "COMPLETED", words_of(site, run)


def broken_driver(folder: Path) -> str:
    """A rank's command for which node n1 is bad."""
    smi, rank = folder / "bin" / "nvidia-smi", folder / "rank.sh"
    smi.parent.mkdir()
    smi.write_text(SMI)
    rank.write_text(RANK.format(bin=smi.parent, python=sys.executable))
    for path in (smi, rank):
        path.chmod(0o755)
    return str(rank)


@pytest.mark.slow
def test_one_launcher_on_each_node(site: Site, tmp_path: Path) -> None:
    """2 nodes x 2 ranks, the bits of 4 ranks without Slurm."""
    run = tmp_path / "run"
    job = submitted(site, run, 'tasks = "per_node"\ntasks_per_node = 2', 2)
    completed(site, job, run)
    facts = json.loads((run / "environment.json").read_text())
    assert (facts["launcher"], facts["world_size"]) == ("environment", 4)
    assert_same_weights(run, site.calm(4))
    assert numbers(run) == numbers(site.calm(4))
    assert site.lab.job(job)["NumTasks"] == "2"


def test_a_bad_node_is_named_and_left_out(site: Site, tmp_path: Path) -> None:
    """The job gives its nodes back, is requeued without the bad one, and trains.

    With a launcher of one rank on each node.
    """
    run = tmp_path / "run"
    variables = {"ELECTRA_DIST_RANK_COMMAND": broken_driver(tmp_path)}
    job = submitted(site, run, 'exclude_bad_nodes = true\ntasks = "per_node"', 2, **variables)
    completed(site, job, run)
    (found,) = read_lines(run / "bad_nodes.jsonl")
    assert list(found["bad"]) == found["left_out"] == ["n1"]
    assert "Unable to determine the device handle" in found["bad"]["n1"]
    ended, last = read_lines(run / "requeue.jsonl")
    assert (ended["action"], ended["excluded"]) == ("requeue", ["n1"])
    assert "not fit to train: n1 (devices:" in ended["why"]
    assert last["why"] == "finished"
    state = site.lab.job(job)
    assert (state["ExcNodeList"], state["NodeList"], state["Restarts"]) == ("n1", "n[2-3]", "1")
    assert len(list((run / "attempts").iterdir())) == 1
    assert not (run / "doctor").exists()
    assert "node n1 is not fit to train: devices" in words_of(site, run)
    assert json.loads((run / "environment.json").read_text())["launcher"] == "environment"
    assert_same_weights(run, site.calm(2))
    # Whoever submits the run again is spared the same node.
    where = ["--out", run, "--cluster", run.parent / "here.toml", "--dry-run"]
    assert "--exclude=n1" in electra("submit", "slurm", site.config, *where)


@pytest.mark.slow
def test_the_others_train_where_they_are_enough(site: Site, tmp_path: Path) -> None:
    """resilience.min_world_size: no requeue, the same job on two of its three nodes."""
    run = tmp_path / "run"
    variables = {"ELECTRA_DIST_RANK_COMMAND": broken_driver(tmp_path)}
    words = ("--resilience.min_world_size", "2")
    job = submitted(site, run, "exclude_bad_nodes = true", 3, *words, **variables)
    completed(site, job, run)
    (last,) = read_lines(run / "requeue.jsonl")
    assert last["why"] == "finished"
    assert json.loads((run / "environment.json").read_text())["world_size"] == 2
    assert_same_weights(run, site.calm(2))


@pytest.mark.slow
def test_when_all_are_bad_it_is_not_the_nodes(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submitted(site, run, "exclude_bad_nodes = true", 2, MASTER_PORT="222222")
    assert site.lab.wait_for(job, ("FAILED", "COMPLETED"), 120.0)["JobState"] == "FAILED"
    (end,) = read_lines(run / "requeue.jsonl")
    assert (end["action"], "it is not the nodes" in end["why"]) == ("leave", True)
    assert not list(run.glob("attempts/*"))
