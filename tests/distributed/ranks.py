"""Run a function on several real gloo ranks, each a process, and collect what it returns."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


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
    base = {
        **os.environ,
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    children = []
    for rank in range(world_size):
        log = (logs / f"rank_{rank}.log").open("wb")
        result = logs / f"rank_{rank}.json"
        command = [sys.executable, "-m", "tests.distributed.ranks", target, str(result)]
        command.append(json.dumps(arguments))
        environment = {**base, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        children.append(
            subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        )
        log.close()
    try:
        codes = [child.wait(timeout=timeout_seconds) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    for rank, code in enumerate(codes):
        if code:
            text = (logs / f"rank_{rank}.log").read_text(errors="replace")
            raise AssertionError(f"rank {rank} of {target} ended with {code}:\n{text[-4000:]}")
    return [json.loads((logs / f"rank_{rank}.json").read_text()) for rank in range(world_size)]


def main() -> None:
    """One rank: join the group, call the target, write what it returned."""
    import importlib

    import torch

    from electra_dist.runtime.collectives import start_process_group
    from electra_dist.runtime.world import World

    target, result_path, arguments = sys.argv[1:]
    module_name, function_name = target.split(":")
    world = World.from_environment(os.environ)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world.world_size))
    groups = start_process_group(world, timeout_seconds=120.0, always=True)
    function = getattr(importlib.import_module(module_name), function_name)
    result = function(groups, **json.loads(arguments))
    Path(result_path).write_text(json.dumps(result))
    groups.shutdown(graceful=True)


if __name__ == "__main__":
    main()
