"""Jobs that Slurm, a person or a fault interrupts: each run ends by itself, as if nothing had been.

The reference is the calm run at the same world size: weights, moments and metrics, bit for bit.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from electra_dist.launch.records import read_lines
from tests.cluster.hosts import network_hosts
from tests.cluster.site import Site, electra, exit_of
from tests.cluster.slurm_lab import slurm_lab

pytestmark = [pytest.mark.cluster, pytest.mark.needs_slurm]

SLOW = "slow rank=0 step=1:99 seconds=0.2"
"""40 steps then take 8 s: long enough to be met in the middle."""


def test_a_requeue_by_hand(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = site.submit(run, ELECTRA_DIST_FAULTS=SLOW)
    site.reach(job, run, 12)
    site.lab.run("scontrol", "requeue", job)
    site.finished(job, run, attempts=2)
    assert exit_of(run, 1)["reason"] == "stopped"


def test_preemption_with_grace(site: Site, tmp_path: Path) -> None:
    """The ranks get the signal, not the shell: it sees them leave, and has the job requeued."""
    run = tmp_path / "run"
    job = site.submit(run, "--partition=low", ELECTRA_DIST_FAULTS=SLOW)
    site.reach(job, run, 12)
    script = tmp_path / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 1\n")
    urgent = site.lab.submit("--partition=high", "--nodes=4", "--exclusive", "-o/dev/null", script)
    site.lab.wait_for(urgent, ("COMPLETED",), 90.0)
    site.finished(job, run, attempts=2)
    ends = read_lines(run / "requeue.jsonl")
    assert [(end["action"], end["signals"]) for end in ends] == [("requeue", []), ("leave", [])]


@pytest.mark.slow
def test_a_time_limit(site: Site, tmp_path: Path) -> None:
    """USR1 comes to the shell half a minute before the limit of one minute, or a little later."""
    run = tmp_path / "run"
    flags = ("--time=1", "--signal=B:USR1@30")
    job = site.submit(run, *flags, ELECTRA_DIST_FAULTS="slow rank=0 step=1:99 seconds=1.5")
    site.end(job, run, "COMPLETED", seconds=600.0)
    site.finished(job, run, attempts=None)
    ends = read_lines(run / "requeue.jsonl")
    assert len(ends) >= 2
    assert {end["action"] for end in ends[:-1]} == {"requeue"}
    assert any(end["signals"] == ["USR1"] for end in ends[:-1])


@pytest.mark.slow
def test_a_node_that_dies(site: Site, tmp_path: Path) -> None:
    """Slurm requeues the job itself, on other nodes."""
    run = tmp_path / "run"
    job = site.submit(run, ELECTRA_DIST_FAULTS=SLOW)
    site.reach(job, run, 12)
    second = _nodes(site, job)[1]
    site.lab.kill_node(second)
    try:
        site.finished(job, run, attempts=2)
    finally:
        site.lab.start_node(second)
        site.lab.wait(site.lab.all_idle, 60.0, "the node is back")


@pytest.mark.slow
def test_a_nodes_link_goes_down(site: Site, tmp_path: Path) -> None:
    """Each node has a network of its own. The node that is cut off lives on, and does no harm."""
    place = Path(tempfile.mkdtemp(prefix="lab")) / "s"
    with network_hosts(4) as hosts, slurm_lab(place, hosts=hosts) as lab:
        here = replace(site, lab=lab)
        run = tmp_path / "run"
        variables = {"MASTER_ADDR": hosts.address(1), "GLOO_SOCKET_IFNAME": "eth0"}
        job = here.submit(run, ELECTRA_DIST_FAULTS=SLOW, **variables)
        here.reach(job, run, 12)
        assert _nodes(here, job) == ["n1", "n2"]
        hosts.link(2, "down")
        here.lab.wait(lambda: here.lab.job(job)["Restarts"] == "1", 60.0, "Slurm has seen it")
        hosts.link(2, "up")  # while the next attempt runs
        here.finished(job, run, attempts=2)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["of the batch script's node", "of the other node"])
def test_a_step_daemon_is_killed_and_slurmd_lives(site: Site, tmp_path: Path, which: int) -> None:
    """Slurm does not notice; the other rank does, and the supervisor starts all of them again."""
    run = tmp_path / "run"
    job = site.submit(run, ELECTRA_DIST_FAULTS=SLOW)
    site.reach(job, run, 12)
    node = _nodes(site, job)[which]
    site.lab.kill_node(node, with_slurmd=False, step="0")
    site.finished(job, run, attempts=2)


@pytest.mark.slow
def test_a_controller_that_is_started_again(site: Site, tmp_path: Path) -> None:
    """Running jobs do not need it; a requeue waits for it."""
    run = tmp_path / "run"
    job = site.submit(run, ELECTRA_DIST_FAULTS=SLOW)
    site.reach(job, run, 12)
    site.lab.kill("slurmctld")
    time.sleep(2.0)
    site.lab.start_controller()
    site.finished(job, run, attempts=1)


def test_no_progress(site: Site, tmp_path: Path) -> None:
    """A run that always crashes at step 7 is tried a second time, then given up with a reason."""
    run = tmp_path / "run"
    fault = "kill rank=0 step=7 attempt=any"
    words = ("--resilience.max_restarts", "1")
    job = site.submit(run, words=words, ELECTRA_DIST_FAULTS=fault)
    end = site.end(job, run, "FAILED")
    assert (end["action"], end["exits_with"]) == ("leave", 1)
    assert "2 attempts in a row have ended without a new checkpoint" in end["why"]
    assert len(list((run / "attempts").iterdir())) == 2
    assert end["why"] in site.words(run)
    assert site.lab.job(job)["Restarts"] == "0"


def test_scancel_stops_for_good(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = site.submit(run, ELECTRA_DIST_FAULTS=SLOW)
    site.reach(job, run, 5)
    site.lab.run("scancel", job)
    site.end(job, run, "CANCELLED")
    time.sleep(8.0)  # longer than a requeued job is held
    assert site.lab.job(job)["JobState"] == "CANCELLED"
    assert len(list((run / "attempts").iterdir())) == 1


@pytest.mark.slow
def test_a_mistake_of_the_user_is_not_tried_again(site: Site, tmp_path: Path) -> None:
    """The ranks find it before there is an attempt, and srun makes 143 of their 2."""
    run = tmp_path / "run"
    job = site.submit(run, words=("--data.corpus", str(tmp_path / "nowhere")))
    site.end(job, run, "FAILED")
    assert site.lab.job(job)["ExitCode"] == "2:0"
    assert site.words(run).count("nowhere") == 1


@pytest.mark.slow
def test_a_run_asked_to_stop_is_not_requeued(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = site.submit(run, ELECTRA_DIST_FAULTS=SLOW)
    site.reach(job, run, 5)
    electra("stop", run)
    assert site.end(job, run, "COMPLETED")["why"] == "asked"
    assert exit_of(run, 1)["reason"] == "asked"


@pytest.mark.slow
def test_training_goes_on_with_the_nodes_that_are_left(site: Site, tmp_path: Path) -> None:
    """--no-kill: the same job, three ranks instead of four, and the calm run's order of rows."""
    run = tmp_path / "run"
    words = ("--resilience.min_world_size", "3")
    flags = ("--nodes=4", "--no-kill")
    job = site.submit(run, *flags, words=words, ELECTRA_DIST_FAULTS=SLOW)
    site.reach(job, run, 12)
    third = _nodes(site, job)[2]
    site.lab.kill_node(third)
    try:
        site.end(job, run, "COMPLETED")
    finally:
        site.lab.start_node(third)
        site.lab.wait(site.lab.all_idle, 60.0, "the node is back")
    assert site.lab.job(job)["Restarts"] == "0"
    restart = read_lines(run / "supervisor.jsonl")[0]
    assert (restart["action"], restart["world_size"]) == ("restart", 3)
    electra("corpus", "audit", run)
    assert given_rows(run) == given_rows(site.calm(2))


def given_rows(run: Path) -> dict[int, tuple[int, str]]:
    """Of each step, the first position and the checksum of all that the engines were given."""
    lines = read_lines(run / "ledger.jsonl")
    return {x["step"]: (x["position"], x["checksum"]) for x in lines if x["kind"] == "step"}


def _nodes(site: Site, job: str) -> list[str]:
    return site.lab.run("scontrol", "show", "hostnames", site.lab.job(job)["NodeList"]).split()
