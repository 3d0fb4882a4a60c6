"""Runs every scenario of test_collectives.py at once: `python collective_ranks.py FOLDER`.

torch is imported once, here, and the ranks are forked from this process before torch does anything.
Rank R of scenario S writes what it saw to FOLDER/S.R.json.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from electra_dist.runtime import collectives
from electra_dist.runtime.collectives import (
    CollectiveError,
    ProcessGroups,
    leave,
    start_process_group,
)
from electra_dist.runtime.world import World

OVERALL_SECONDS = 60.0
"""Only a rank that hangs, which is a bug, makes the scenarios take as long."""

START_SECONDS = 40.0
"""Deadline of the start: 20 ranks start at once, on a machine that may be busy."""

NEVER = 120.0
"""A deadline that a scenario must not need: what ends in time has been noticed by other means."""


def healthy(groups: ProcessGroups) -> Any:
    rank, control = groups.world.rank, groups.control
    training = torch.ones(2) * rank
    dist.all_reduce(training)
    control.barrier("all here")
    return {
        "sums": [control.all_reduce_sum([rank, 0.1, 1e300], "sum") for _ in range(3)],
        "gathered": control.all_gather_objects({"rank": rank, "text": "é" * rank * 1000}),
        "broadcast": control.broadcast_json({"from": rank, "list": [1.5, None]}),
        "training": training.tolist(),
        "environment": [os.environ["RANK"], os.environ["LOCAL_WORLD_SIZE"]],
    }


def slow_but_in_time(groups: ProcessGroups) -> Any:
    if groups.world.rank == 1:
        time.sleep(3)
    return groups.control.all_reduce_sum([1.0], "slow")


def sleeper(groups: ProcessGroups) -> Any:
    if groups.world.rank == 2:
        time.sleep(8)  # Longer than the deadline and the grace after it.
    return groups.control.all_reduce_sum([1.0], "step flags")


def everybody_up_then(groups: ProcessGroups, rank: int, number: signal.Signals) -> None:
    """Rank `rank` gets the signal once all ranks have left the start for certain."""
    groups.control.barrier("up")
    if groups.world.rank == rank:
        time.sleep(1)
        os.kill(os.getpid(), number)


def killed(groups: ProcessGroups) -> Any:
    everybody_up_then(groups, 1, signal.SIGKILL)
    groups.control.barrier("save")


def host_killed(groups: ProcessGroups) -> Any:
    everybody_up_then(groups, 0, signal.SIGKILL)
    return groups.control.all_gather_objects(groups.world.rank, "gather")


def host_stopped(groups: ProcessGroups) -> Any:
    everybody_up_then(groups, 0, signal.SIGSTOP)
    groups.control.barrier("evaluation")


def lost_in_training(groups: ProcessGroups) -> Any:
    """A collective of another group fails, and the ranks ask who it was."""
    everybody_up_then(groups, 1, signal.SIGKILL)
    try:
        dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        raise groups.control.failure("backward") from error


def does_not_start(groups: ProcessGroups) -> Any:
    raise AssertionError(f"{groups.world} has started")


def stop_here(*_: object) -> ProcessGroups:
    """In place of the last phase of the start, in the process of one rank."""
    os.kill(os.getpid(), signal.SIGSTOP)
    raise AssertionError("a stopped process went on")


SCENARIOS: dict[str, tuple[Callable[[ProcessGroups], Any], int, float]] = {
    "healthy": (healthy, 3, NEVER),
    "slow_but_in_time": (slow_but_in_time, 2, NEVER),
    "sleeper": (sleeper, 3, 2.0),
    "killed": (killed, 4, NEVER),
    "host_killed": (host_killed, 2, NEVER),
    "host_stopped": (host_stopped, 2, 3.0),
    "lost_in_training": (lost_in_training, 2, NEVER),
    "absent": (does_not_start, 3, 5.0),
    "stopped_at_start": (does_not_start, 2, 1.0),
}
"""Name: (what each rank does, number of ranks, deadline in seconds)."""


def run_rank(folder: Path, name: str, world: World) -> int:
    body, _, timeout_seconds = SCENARIOS[name]
    try:
        start_seconds = timeout_seconds if body is does_not_start else START_SECONDS
        if name == "stopped_at_start" and world.rank == 0:
            collectives._make_groups = stop_here  # type: ignore[assignment]
        groups = start_process_group(world, timeout_seconds=start_seconds)
        groups.control.timeout_seconds = timeout_seconds
        seen = {"value": body(groups)}
        groups.shutdown(graceful=True)
        code = 0
    except CollectiveError as error:
        seen = {
            "error": type(error).__name__,
            "message": str(error),
            "missing": error.missing,
            "operation": error.operation,
        }
        code = 1
    (folder / f"{name}.{world.rank}.json").write_text(json.dumps(seen))
    return code


def start_scenario(folder: Path, name: str) -> list[int]:
    _, num_ranks, _ = SCENARIOS[name]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(num_ranks):
        if name == "absent" and rank == 1:
            continue
        pid = os.fork()
        if pid == 0:
            code = 3
            errors = os.open(folder / f"{name}.{rank}.stderr", os.O_WRONLY | os.O_CREAT)
            os.dup2(errors, 2)
            try:
                code = run_rank(
                    folder,
                    name,
                    World(
                        rank=rank,
                        world_size=num_ranks,
                        local_rank=rank,
                        local_world_size=num_ranks,
                        master_addr="127.0.0.1",
                        master_port=port,
                        launcher="environment",
                    ),
                )
            finally:
                leave(code)
        pids.append(pid)
    return pids


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    pids = [pid for name in SCENARIOS for pid in start_scenario(folder, name)]
    deadline = time.monotonic() + OVERALL_SECONDS
    while pids and time.monotonic() < deadline:
        pids = [pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0] == 0]
        time.sleep(0.05)
        if len(pids) == sum("stopped" in name for name in SCENARIOS):
            break  # The stopped ranks, the only ones that never end.
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
