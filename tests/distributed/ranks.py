"""Run a function on several real gloo ranks, each a process, and collect what it returns.

Ranks are forked by multiprocessing's fork server, which has imported torch and DeepSpeed once: that
takes 3 s of a core, on two cores a third of this suite if each rank did it. The server is a process
of its own, with one thread, no group and no test's state.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import socket
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["electra_dist.train.build", "electra_dist.engine.deepspeed"])


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    target: str, world_size: int, logs: Path, timeout_seconds: float = 600.0, **arguments: Any
) -> list[Any]:
    """Call `module:function(groups, **arguments)` on real ranks; their JSON results by rank.

    A rank that fails makes the test fail with the end of its output.
    """
    logs.mkdir(parents=True, exist_ok=True)
    shared = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    deadline = time.monotonic() + timeout_seconds
    ranks: list[Any] = []
    try:
        for rank in range(world_size):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = _SERVER.Process(
                target=_be_rank, args=(target, arguments, environment, logs, rank)
            )
            process.start()
            ranks.append(process)
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.join()
    for rank, code in enumerate(codes):
        if code != 0:
            text = (logs / f"rank_{rank}.log").read_text(errors="replace")
            how = f"ended with {code}" if code else f"was at work after {timeout_seconds} s"
            raise AssertionError(f"rank {rank} of {target} {how}:\n{text[-4000:]}")
    return [json.loads((logs / f"rank_{rank}.json").read_text()) for rank in range(world_size)]


def _be_rank(
    target: str, arguments: dict[str, Any], environment: dict[str, str], logs: Path, rank: int
) -> None:
    """One rank: join the group, call the target, write what it returned."""
    with (logs / f"rank_{rank}.log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)

    import torch

    from electra_dist.runtime.collectives import start_process_group
    from electra_dist.runtime.world import World

    module_name, function_name = target.split(":")
    world = World.from_environment(os.environ)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world.world_size))
    groups = start_process_group(world, timeout_seconds=120.0, always=True)
    function = getattr(importlib.import_module(module_name), function_name)
    result = function(groups, **json.loads(json.dumps(arguments)))
    (logs / f"rank_{rank}.json").write_text(json.dumps(result))
    groups.shutdown(graceful=True)
