"""How many threads a rank that computes has, after torch's own collectives too."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.distributed

CODE = """
import os, sys
import torch, torch.distributed as dist
from electra_dist.runtime.collectives import start_process_group
from electra_dist.runtime.cpu import compute_in_this_thread
from electra_dist.runtime.world import World
start = {"ours": compute_in_this_thread, "torch": torch.set_num_threads}[sys.argv[1]]
groups = start_process_group(World.from_environment({}), timeout_seconds=60.0, always=True)
start(2)
values = torch.ones(1_000_000)
values.add_(1.0)
before = len(os.listdir("/proc/self/task"))
for _ in range(20):  # by either of gloo's threads
    dist.all_gather_into_tensor(torch.empty_like(values), values)
print(len(os.listdir("/proc/self/task")) - before)
groups.shutdown(graceful=True)
"""


@pytest.mark.parametrize(("start", "has_more"), [("ours", False), ("torch", True)])
def test_gathering_leaves_no_further_threads_behind(start: str, has_more: bool) -> None:
    # With torch's own setting gloo's threads get OpenMP threads of their own, of which there are
    # then more than CPUs: libgomp's sleep between loops, and a step takes a tenth longer.
    done = subprocess.run(
        [sys.executable, "-c", CODE, start],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (int(done.stdout.split()[-1]) > 0) == has_more
