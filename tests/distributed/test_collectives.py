"""What ranks say when one of them is late, dead, stopped or absent, with real gloo ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from electra_dist.launch.local import free_port

pytestmark = pytest.mark.distributed

Seen = dict[str, dict[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What each surviving rank of each scenario saw: all of them run at once, they mostly wait."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("collective_ranks.py")
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), str(folder)], env=environ, check=True, timeout=90)
    found: Seen = {}
    for path in folder.glob("*.json"):
        scenario, rank, _ = path.name.split(".")
        found.setdefault(scenario, {})[int(rank)] = json.loads(path.read_text())
    stderr = (folder / "stopped_at_start.1.stderr").read_text()
    found["stopped_at_start"] = {1: {"stderr": stderr}}
    return found


def test_exchanges_give_every_rank_the_same_right_answer(seen: Seen) -> None:
    assert sorted(seen["healthy"]) == [0, 1, 2]
    for rank, saw in seen["healthy"].items():
        value = saw["value"]
        assert value["sums"] == [[3.0, pytest.approx(0.3, rel=1e-15), 3e300]] * 3
        assert [g["rank"] for g in value["gathered"]] == [0, 1, 2]
        assert [len(g["text"]) for g in value["gathered"]] == [0, 1000, 2000]
        assert value["broadcast"] == {"from": 0, "list": [1.5, None]}
        assert value["training"] == [3.0, 3.0]
        assert value["environment"] == [str(rank), "3"]


def test_a_rank_that_is_slow_but_in_time_is_waited_for(seen: Seen) -> None:
    assert [seen["slow_but_in_time"][rank]["value"] for rank in (0, 1)] == [[2.0], [2.0]]


def test_a_rank_that_sleeps_beyond_the_deadline_is_named(seen: Seen) -> None:
    for rank in (0, 1):
        saw = seen["sleeper"][rank]
        assert saw["error"] == "CollectiveTimeout"
        assert saw["missing"] == [2]
        assert "rank 2 did not arrive at 'step flags' within 2 s" in saw["message"]
    assert "error" in seen["sleeper"][2]


def test_a_killed_rank_is_named_by_all_others_before_the_deadline(seen: Seen) -> None:
    assert sorted(seen["killed"]) == [0, 2, 3]
    for saw in seen["killed"].values():
        assert (saw["error"], saw["missing"], saw["operation"]) == ("RankLost", [1], "save")
        assert "rank 1 did not answer after a connection closed in 'save'" in saw["message"]


@pytest.mark.parametrize(
    ("scenario", "operation"), [("host_killed", "gather"), ("host_stopped", "evaluation")]
)
def test_when_the_host_of_the_store_is_gone_it_is_named(
    seen: Seen, scenario: str, operation: str
) -> None:
    assert sorted(seen[scenario]) == [1]
    saw = seen[scenario][1]
    assert (saw["error"], saw["missing"], saw["operation"]) == ("RankLost", [0], operation)
    assert "rank 0, which hosts the store at 127.0.0.1:" in saw["message"]


def test_a_training_collective_that_failed_can_be_asked_about(seen: Seen) -> None:
    saw = seen["lost_in_training"][0]
    assert (saw["error"], saw["missing"], saw["operation"]) == ("RankLost", [1], "backward")


def test_a_rank_that_never_started_is_named_by_the_others(seen: Seen) -> None:
    assert sorted(seen["absent"]) == [0, 2]
    for saw in seen["absent"].values():
        assert (saw["error"], saw["missing"]) == ("CollectiveTimeout", [1])
        assert saw["message"] == "rank 1 of 3 did not start in 5 s."


def test_a_start_does_not_wait_for_ever_for_a_stopped_host(seen: Seen) -> None:
    words = "rank 0, which hosts the store at 127.0.0.1:"
    assert words in seen["stopped_at_start"][1]["stderr"]


def test_the_selftest_of_a_single_process_says_ok() -> None:
    command = [sys.executable, "-m", "electra_dist.runtime.selftest"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout[:8]) == (0, "OK node "), done.stderr


def test_the_selftest_in_a_contradictory_environment_is_the_users_mistake() -> None:
    command = [sys.executable, "-m", "electra_dist.runtime.selftest"]
    environ = os.environ | {"RANK": "3", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environ
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_ranks_of_torchrun_use_the_store_of_its_agent() -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    address = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    command = [*torchrun, *address, "-m", "electra_dist.runtime.selftest"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert ": 2 of 2 ranks, " in done.stdout
    # What torch says when rank 0 wants to listen where the agent does.
    assert "failed to bind" not in done.stderr
