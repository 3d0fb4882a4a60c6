import os
import subprocess
import sys
from dataclasses import replace

import pytest

from electra_dist.runtime.cpu import fair_share_of_cpus
from electra_dist.runtime.world import World

CODE = """
import threading
import torch
from electra_dist.runtime.cpu import compute_in_this_thread
compute_in_this_thread(2)
seen = []
def ask():
    torch.ones(100_000).add_(1.0)
    seen.append(torch.get_num_threads())
other = threading.Thread(target=ask)
other.start()
other.join()
torch.ones(100_000).add_(1.0)
print(torch.get_num_threads(), *seen)
"""


def test_the_calling_thread_alone_gets_the_threads() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "1"]


@pytest.mark.parametrize(
    ("launcher", "ranks", "allowed", "on_host", "share"),
    [
        ("environment", 2, 8, 8, 4),
        ("torchrun", 4, 16, 128, 4),  # a job's part of a node, which its ranks share
        ("slurm", 4, 8, 128, 8),  # each task is bound to CPUs of its own
        ("slurm", 4, 128, 128, 32),  # or to none
        ("openmpi", 4, 2, 8, 1),
        ("single", 1, 8, 8, 8),
    ],
)
def test_a_rank_takes_its_share_of_the_cpus_that_it_may_run_on(
    launcher: str,
    ranks: int,
    allowed: int,
    on_host: int,
    share: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.setattr(os, "cpu_count", lambda: on_host)
    world = World.from_environment({})
    world = replace(world, launcher=launcher, world_size=ranks, local_world_size=ranks)
    assert fair_share_of_cpus(world) == share
