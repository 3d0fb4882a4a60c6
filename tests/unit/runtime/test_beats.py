import json
from pathlib import Path

import pytest

from electra_dist.errors import Superseded
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.beats import Beats, Node, Seat, beats_folder, nodes_of
from electra_dist.runtime.phases import Phases


@pytest.fixture(autouse=True)
def _own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_nodes_are_the_hosts_in_the_order_of_their_ranks() -> None:
    seats = [Seat(0, "a"), Seat(1, "a"), Seat(0, "b"), Seat(1, "b"), Seat(2, "b")]
    assert [(n.number, n.host, n.ranks) for n in nodes_of(seats)] == [
        (0, "a", (0, 1)),
        (1, "b", (2, 3, 4)),
    ]
    # Dealt out in turn, as srun --distribution=cyclic does.
    cyclic = [Seat(0, "a"), Seat(0, "b"), Seat(1, "a"), Seat(1, "b")]
    assert [n.ranks for n in nodes_of(cyclic)] == [(0, 2), (1, 3)]
    # Two virtual nodes on one host.
    both = [Seat(0, "a"), Seat(1, "a"), Seat(0, "a"), Seat(1, "a")]
    assert [n.ranks for n in nodes_of(both)] == [(0, 1), (2, 3)]


def test_a_neighbour_sees_where_a_rank_is_and_all_see_the_node_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    attempt = Attempt.claim(run)
    node = Node(number=1, host="a", ranks=(2, 3))
    mine, other = Beats(attempt, 2, node), Beats(attempt, 3, node)
    phases = Phases()
    phases.listeners.append(other.beat)
    phases.begin_step(7)
    assert mine.look()[2] == {}
    with phases.enter("backward"), phases.enter("reduce"):
        seen = mine.look()[3]
    assert (seen["step"], seen["phase"], seen["number"]) == (7, "reduce", 2)
    mine.write_node_file()
    value = json.loads((run / "heartbeat" / "node_001").read_text())
    assert (value["host"], value["attempt"]) == ("a", 1)
    assert value["ranks"]["3"]["phase"] == "loop"

    Attempt.claim(run)
    with pytest.raises(Superseded):
        mine.write_node_file()
    mine.close()
    other.close()
    assert not beats_folder(attempt).exists()


def test_what_a_killed_attempt_left_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    node = Node(number=0, host="a", ranks=(0,))
    killed = Attempt.claim(run)
    Beats(killed, 0, node)
    beats = Beats(Attempt.claim(run), 0, node)
    assert beats_folder(killed).exists()
    beats.remove_older()
    assert not beats_folder(killed).exists()
    assert beats.look()[0] == {}
    beats.close()


def test_a_tmp_that_takes_nothing_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    beats = Beats(Attempt.claim(tmp_path / "run"), 0, Node(number=0, host="a", ranks=(0,)))
    beats.beat(Phases().current)
    assert beats.look() == {0: {}}
    beats.close()
