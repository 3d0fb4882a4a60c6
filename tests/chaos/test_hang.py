"""A rank that hangs or is stopped: the attempt ends on all ranks and says who it was, and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from electra_dist.runtime.files import read_json_lines
from tests import made_up
from tests.chaos.test_kill import start

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made_up.corpus(tmp_path_factory.mktemp("corpus"), length=32))


def hung(corpus: str, run: Path, stage: str, fault: str) -> dict[str, Any]:
    """The event of a run of two ranks that meets `fault`, which has a floor of 3 s."""
    words = {"ELECTRA_DIST_FAULTS": fault}
    more = ["--resilience.hang_floor_seconds", "3", "--max-restarts", "0"]
    # Without the watchdog the ranks would wait for engine.timeout_seconds, half an hour.
    assert start(corpus, run, stage, 2, words, more).wait(timeout=150) == 1
    attempt = run / "attempts" / "0001"
    ended = json.loads((attempt / "exit.json").read_text())
    assert (ended["reason"], ended["step"], ended["exit_code"]) == ("hang", 19, 1)
    assert ended["checkpoint"] == "step_00000016"
    (event,) = [e for e in read_json_lines(run / "events.jsonl") if e["event"] == "hang"]
    (node,) = (run / "heartbeat").iterdir()
    assert set(json.loads(node.read_text())["ranks"]) == {"0", "1"}
    return event


def stacks(run: Path, rank: int) -> str:
    """What the watchdog wrote into the rank's log."""
    log = (run / "attempts" / "0001" / f"rank_{rank:05d}.log").read_text()
    return log.partition("--- stacks of rank")[2]


@pytest.mark.parametrize("stage", ["reference", pytest.param("2", marks=pytest.mark.slow)])
def test_a_rank_that_hangs_is_named_with_its_phase(stage: str, corpus: str, tmp_path: Path) -> None:
    event = hung(corpus, tmp_path, stage, "hang rank=1 step=20 phase=data")
    assert (event["ranks"], event["phases"], event["step"]) == ([1], ["data"], 20)
    assert "in data of step 20" in event["cause"]
    assert "faults.py" in stacks(tmp_path, 1)
    assert "faults.py" not in stacks(tmp_path, 0)
    assert "all_reduce" in stacks(tmp_path, 0)


@pytest.mark.slow  # the launcher gives a stopped rank 25 s
@pytest.mark.parametrize(("rank", "stage"), [(0, "reference"), (1, "reference"), (1, "3")])
def test_a_rank_that_is_stopped_is_named_by_the_others(
    rank: int, stage: str, corpus: str, tmp_path: Path
) -> None:
    event = hung(corpus, tmp_path, stage, f"stop rank={rank} step=20 phase=backward")
    assert (event["ranks"], event["phases"]) == ([rank], ["backward"])
    assert event["rank"] == 1 - rank
    assert "does not answer" in event["cause"]
    assert stacks(tmp_path, 1 - rank)
    assert not stacks(tmp_path, rank)
