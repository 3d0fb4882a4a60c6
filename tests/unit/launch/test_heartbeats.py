import json
from pathlib import Path
from typing import Any

from electra_dist.launch.heartbeats import WAITING, heartbeats, in_words
from electra_dist.runtime import phases

NOW = 1_770_000_000.0


def a_run(tmp_path: Path, nodes: dict[str, dict[int, tuple[int, str, float]]]) -> Path:
    """Heartbeats of 4 s ago: of each host's ranks step, phase and seconds in it."""
    (tmp_path / "attempts" / "0002").mkdir(parents=True)
    (tmp_path / "heartbeat").mkdir()
    written = NOW - 4
    for number, (host, ranks) in enumerate(nodes.items()):
        value: dict[str, Any] = {"time": written, "attempt": 2, "host": host, "ranks": {}}
        for rank, (step, phase, seconds) in ranks.items():
            value["ranks"][str(rank)] = {"step": step, "phase": phase, "since": written - seconds}
        (tmp_path / "heartbeat" / f"node_{number:03d}").write_text(json.dumps(value))
    return tmp_path


def test_where_the_ranks_are(tmp_path: Path) -> None:
    nodes = {"a": {0: (12, "data", 1.0), 1: (13, "agree", 0.5)}, "b": {2: (12, "backward", 0.1)}}
    beats = heartbeats(a_run(tmp_path, nodes), NOW)
    assert [(beat.rank, beat.host, beat.step, beat.phase) for beat in beats] == [
        (0, "a", 12, "data"),
        (1, "a", 13, "agree"),
        (2, "b", 12, "backward"),
    ]
    assert in_words(beats) == "3 ranks on 2 hosts in step 12 to 13, 4 s ago"


def test_a_rank_that_stays_in_a_phase_is_named_and_those_that_wait_for_it_are_not(
    tmp_path: Path,
) -> None:
    nodes = {"a": {0: (1200, "reduce", 95.0), 1: (1200, "data", 96.0)}}
    text = in_words(heartbeats(a_run(tmp_path, nodes), NOW))
    assert text == "2 ranks in step 1,200, 4 s ago; rank 1 (a) in data for 96 s then"


def test_what_is_of_an_older_attempt_or_half_written_is_left_out(tmp_path: Path) -> None:
    run = a_run(tmp_path, {"a": {0: (12, "data", 1.0)}})
    (run / "heartbeat" / "node_001").write_text('{"time": 17700')
    assert len(heartbeats(run, NOW)) == 1
    (run / "attempts" / "0003").mkdir()
    assert heartbeats(run, NOW) == []


def test_the_phases_of_waiting_are_those_of_the_ranks() -> None:
    assert set(WAITING) == phases.WAITING
