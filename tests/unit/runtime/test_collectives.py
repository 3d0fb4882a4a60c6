import json
import socket
from dataclasses import replace

import pytest
import torch

from electra_dist.errors import UserError
from electra_dist.runtime.collectives import (
    CollectiveTimeout,
    RankLost,
    _bound_device,
    device_for,
    start_process_group,
)
from electra_dist.runtime.control import verdict
from electra_dist.runtime.selftest import node_lines
from electra_dist.runtime.world import World

ALONE = World.from_environment({})


def arrival(
    rank: int, entered: float = 0.0, kind: str = "lost", name: str = "flags"
) -> dict[str, object]:
    return {"rank": rank, "entered": entered, "kind": kind, "name": name}


def test_a_device_is_bound_where_there_are_others() -> None:
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    two = replace(ALONE, world_size=2, local_world_size=2)
    assert _bound_device(cuda, two) == cuda
    assert _bound_device(cuda, ALONE) is None
    assert _bound_device(cpu, two) is None


def test_alone_every_exchange_returns_at_once() -> None:
    groups = start_process_group(ALONE, timeout_seconds=1)
    assert not groups.has_torch_group
    assert groups.control.all_reduce_sum([1, 2.5]) == [1.0, 2.5]
    assert groups.control.all_gather_objects({"a": (1, 2)}) == [{"a": [1, 2]}]
    assert groups.control.broadcast_json([None, "x"]) == [None, "x"]
    groups.control.barrier("b")
    groups.shutdown(graceful=True)


def test_alone_a_torch_group_exists_when_an_engine_asks_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ALONE.as_environment():
        monkeypatch.setenv(name, "")
    groups = start_process_group(ALONE, timeout_seconds=5, always=True)
    try:
        assert torch.distributed.is_initialized()
        assert torch.distributed.get_world_size() == 1
        assert groups.control.all_reduce_sum([3.0]) == [3.0]
    finally:
        groups.shutdown(graceful=True)
    assert not torch.distributed.is_initialized()


def test_a_port_that_is_taken_is_the_users_mistake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        world = replace(ALONE, world_size=2, master_port=taken.getsockname()[1])
        with pytest.raises(UserError, match="set MASTER_PORT to a free port"):
            start_process_group(world, timeout_seconds=5)


def test_a_rank_that_finds_no_rank_0_says_where_it_looked() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # Bound and not listening: connections are refused.
        port = nobody.getsockname()[1]
        world = replace(ALONE, rank=1, world_size=2, master_port=port)
        with pytest.raises(RankLost, match=f"127.0.0.1:{port}, could not be reached") as caught:
            start_process_group(world, timeout_seconds=0.2)
    assert caught.value.missing == (0,)


@pytest.mark.parametrize(("num_devices", "local_rank", "index"), [(4, 3, 3), (8, 2, 2), (1, 3, 0)])
def test_each_rank_of_a_host_has_a_device(
    num_devices: int, local_rank: int, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert device_for(ALONE).type in ("cpu", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
    world = replace(ALONE, world_size=4, local_rank=local_rank, local_world_size=4)
    assert device_for(world) == torch.device("cuda", index)  # 1: each is shown its own


def test_ranks_that_would_share_a_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    three = replace(ALONE, world_size=3, local_world_size=3)
    with pytest.raises(UserError, match=r"3 ranks .* with 2 GPUs.*start no more ranks than GPUs"):
        device_for(three)


def test_a_timeout_names_the_ranks_that_did_not_come() -> None:
    arrived = {0: arrival(0, kind="timeout"), 3: arrival(3)}
    error = verdict(arrived, world_size=4, name="flags", timeout_seconds=600)
    assert isinstance(error, CollectiveTimeout)
    assert error.missing == (1, 2)
    assert "ranks 1, 2 did not arrive at 'flags' within 600 s" in str(error)


def test_a_closed_connection_names_the_ranks_that_do_not_answer() -> None:
    error = verdict({0: arrival(0)}, world_size=2, name="flags", timeout_seconds=600)
    assert isinstance(error, RankLost)
    assert error.missing == (1,)
    assert "rank 1 did not answer" in str(error)


def test_when_all_came_after_all_the_latest_is_named() -> None:
    arrived = {rank: arrival(rank, 10.0, "timeout") for rank in range(3)}
    arrived[1] = arrival(1, 52.5, name="save")
    error = verdict(arrived, world_size=3, name="flags", timeout_seconds=30)
    assert "rank 1 came 42.5 s after the first" in str(error)
    assert "elsewhere: {1: 'save'}" in str(error)


def test_a_thousand_missing_ranks_make_a_short_message() -> None:
    error = verdict({0: arrival(0)}, world_size=1000, name="flags", timeout_seconds=1)
    assert len(str(error)) < 300
    assert "983 more" in str(error)


def test_the_selftest_has_a_line_for_each_node() -> None:
    report = {"device": "cpu", "is_right": True, "milliseconds": 1.0}
    reports = [{**report, "node": node} for node in ("n1", "n1", "n2")]
    reports[2] = reports[2] | {"is_right": False, "milliseconds": 9.0}
    assert json.loads(json.dumps(reports)) == reports
    assert node_lines(reports) == [
        "OK node n1: 2 of 3 ranks, cpu, all-reduce in 1.0 ms",
        "WRONG SUM node n2: 1 of 3 ranks, cpu, all-reduce in 9.0 ms",
    ]
