"""Threads and memory of a process that computes on the CPU."""

from __future__ import annotations

import os
import threading

import torch

from electra_dist.runtime.memory import keep_freed_memory, prefer_huge_pages
from electra_dist.runtime.world import World


def fair_share_of_cpus(world: World) -> int:
    """How many of its host's CPUs this rank may take, where nobody has said it.

    What the process may run on is its own where Slurm has bound each task to CPUs of its own; else
    all ranks of the host share it: a job's part of a node, or the whole one.
    """
    allowed, ranks = len(os.sched_getaffinity(0)), world.local_world_size
    is_bound = world.launcher == "slurm" and allowed * ranks <= (os.cpu_count() or 1)
    return allowed if is_bound else max(1, allowed // ranks)


def compute_on_cpu(num_threads: int, num_bytes: int) -> None:
    """Give the calling thread all threads, and its tensors memory that stays and is fast.

    Args:
        num_threads: for each of its operations.
        num_bytes: that the process is expected to hold; none of it is resident before it is used.
    """
    compute_in_this_thread(num_threads)
    keep_freed_memory()
    prefer_huge_pages(num_bytes)


def compute_in_this_thread(num_threads: int) -> None:
    """Let the calling thread spread its operations over `num_threads`, and each other over none.

    gloo copies what it gathers in a thread of its own, for which torch would start as many OpenMP
    threads again. Where there are more of them than CPUs, libgomp's no longer wait for the next
    loop but sleep, and have to be woken: after the first all-gather each step of `small` took 12 %
    longer (2 threads on 2 cores).

    Holds for threads that have not computed yet, gloo's too: call it before the first large
    collective. A later `torch.set_num_threads`, in any thread, undoes it.
    """
    torch.set_num_threads(num_threads)
    torch.get_num_threads()  # takes the number for this thread, which the first operation would do
    # To OpenMP it is the number of the thread that says it, to torch that of all which have none.
    other = threading.Thread(target=torch.set_num_threads, args=(1,))
    other.start()
    other.join()
