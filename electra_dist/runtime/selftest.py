"""Can the ranks of this environment reach each other?

    srun python -m electra_dist.runtime.selftest        (or torchrun, mpirun; or just python)

An all-reduce on the devices and one on the CPU; rank 0 prints a line for each node:

    OK node gpu07: 4 of 8 ranks, cuda, all-reduce in 3.1 ms

Exit code 0, 1 if it failed (the message names the ranks that are missing), 2 if the environment
contradicts itself. ELECTRA_SELFTEST_SECONDS is the deadline, 60 if not set.
"""

import os
import socket
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from electra_dist.errors import UserError
from electra_dist.runtime.collectives import ProcessGroups, leave, start_process_group
from electra_dist.runtime.world import World


def main() -> int:
    """Run the test as one rank; returns the exit code."""
    seconds = float(os.environ.get("ELECTRA_SELFTEST_SECONDS", "60"))
    world = World.from_environment(os.environ)
    groups = start_process_group(world, timeout_seconds=seconds)
    report = {"node": socket.gethostname(), "device": groups.device.type, **_all_reduce(groups)}
    reports = groups.control.all_gather_objects(report, "selftest reports")
    wrong = [rank for rank, r in enumerate(reports) if not r["is_right"]]
    if world.is_leader:
        for line in node_lines(reports):
            print(line, flush=True)
    groups.shutdown(graceful=True)
    return 1 if wrong else 0


def node_lines(reports: list[dict[str, Any]]) -> list[str]:
    """A line for each node, in the order of its first rank, from the ranks' reports."""
    lines = []
    for node in dict.fromkeys(report["node"] for report in reports):
        of_node = [report for report in reports if report["node"] == node]
        verdict = "OK" if all(report["is_right"] for report in of_node) else "WRONG SUM"
        slowest = max(report["milliseconds"] for report in of_node)
        lines.append(
            f"{verdict} node {node}: {len(of_node)} of {len(reports)} ranks, "
            f"{of_node[0]['device']}, all-reduce in {slowest:.1f} ms"
        )
    return lines


def _all_reduce(groups: ProcessGroups) -> dict[str, Any]:
    """Sum rank + 1 over ranks: by the training backend on the device, by the control group.

    The first exchange opens connections, so the second one is timed.
    """
    world = groups.world
    expected = world.world_size * (world.world_size + 1) / 2
    sums = groups.control.all_reduce_sum([world.rank + 1.0], "selftest control")
    started = time.monotonic()
    if groups.has_torch_group:
        for _ in range(2):
            started = time.monotonic()
            value = torch.full((1024,), world.rank + 1.0, device=groups.device)
            dist.all_reduce(value)
            sums += value.tolist()
    milliseconds = (time.monotonic() - started) * 1000
    return {"is_right": all(s == expected for s in sums), "milliseconds": milliseconds}


if __name__ == "__main__":
    try:
        exit_code = main()
    except UserError as error:
        print(error, file=sys.stderr)
        exit_code = 2
    except RuntimeError as error:
        print(f"FAILED on {socket.gethostname()}: {error}", file=sys.stderr)
        exit_code = 1
    leave(exit_code)
