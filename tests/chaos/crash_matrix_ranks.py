"""The processes of the crash matrix: forked ranks that save, one of them with a fault at one call.

    LD_PRELOAD=io_faults.so python -m tests.chaos.crash_matrix_ranks FOLDER EVERY

Started once, so that torch is imported once; every rank and every restore is a fork of it. No
process group: ranks that save meet in the folder alone. Prints the table of points as JSON.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from electra_dist.checkpoint import layout
from electra_dist.checkpoint.layout import list_checkpoints
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.retry import Retry
from tests.unit.checkpoint.fake_engine import DictEngine, a_store, restored, saved

FAULTS = {"kill": 1, "torn": 2, "short": 3, "full": 4, "eio": 5, "read-only": 6}
ONLY_WRITES = ("torn", "short")
OLD, NEW = 10, 20
FAILED = 3

shim = ctypes.CDLL(None)
shim.io_faults_trace.restype = ctypes.c_char_p


def in_fork(work: Callable[[], int]) -> int:
    """Start a process that ends with what `work` returns; its id."""
    process = os.fork()
    if process == 0:
        try:
            os._exit(work())
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    return process


def exit_code(process: int) -> int:
    """Negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def save(run: Path, step: int, rank: int, deadline: float) -> int:
    """One rank's part of a save; one checkpoint is kept, so that a good save retires the old."""
    store = a_store(Attempt.join(run, 1), keep_last=1, rank=rank, ranks=2, deadline=deadline)
    return 0 if saved(store, DictEngine(step, rank=rank, ranks=2), step, {"step": step}) else FAILED


def trace(run: Path, rank: int) -> list[str]:
    """The I/O calls of a save on this rank, beside an unarmed other one."""

    def work() -> int:
        shim.io_faults_arm(os.fsencode(run), 0, 0)
        code = save(run, NEW, rank, 20.0)
        (run.parent / "trace").write_bytes(shim.io_faults_trace())
        return code

    other = in_fork(lambda: save(run, NEW, 1 - rank, 20.0))
    assert exit_code(in_fork(work)) == 0
    assert exit_code(other) == 0
    return (run.parent / "trace").read_text().splitlines()


def faulty_save(run: Path, rank: int, at: int, fault: str) -> int:
    """Both ranks save `NEW`, call number `at` of `rank` goes wrong; rank 0's exit code."""

    def victim() -> int:
        shim.io_faults_arm(os.fsencode(run), at, FAULTS[fault])
        return save(run, NEW, rank, deadline=10.0)

    # A killed rank 1 is waited for in vain, so not for long.
    processes = {
        rank: in_fork(victim),
        1 - rank: in_fork(lambda: save(run, NEW, 1 - rank, deadline=0.4)),
    }
    codes = {number: exit_code(process) for number, process in processes.items()}
    expected = (-9,) if fault in ("kill", "torn") else (0, FAILED)
    assert codes[rank] in expected, f"rank {rank} ended with {codes[rank]}"
    assert codes[1 - rank] in (0, FAILED)
    return codes[0]


def recover(run: Path, was_saved: bool) -> int:
    """A fresh process: what is there verifies, and a restore gives exactly one of the two states.

    Returns its step.
    """
    complete = list_checkpoints(run)
    assert complete, "nothing is left"
    for info in complete:
        with CheckpointReader(info.folder) as reader:
            reader.verify()
    store = a_store(Attempt.claim(run))
    store.remove_leftovers()
    engine, state = restored(store)
    assert state in ({"step": OLD}, {"step": NEW}), f"the state is {state}"
    assert engine.equals(state["step"]), "weights and state are of two checkpoints"
    assert state["step"] == NEW or not was_saved, "it was said to be saved"
    assert saved(store, DictEngine(30), 30, {"step": 30})  # and the run goes on
    assert restored(a_store(Attempt.claim(run)))[1] == {"step": 30}
    return int(state["step"])


def outcome(base: Path, run: Path, rank: int, at: int, fault: str) -> str:
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(base, run)
    was_saved = faulty_save(run, rank, at, fault) == 0
    code = exit_code(in_fork(lambda: recover(run, was_saved)))
    return {OLD: "previous", NEW: "new"}.get(code, f"BROKEN ({code})")


def main() -> None:
    folder, every = Path(sys.argv[1]), int(sys.argv[2])
    logging.disable()
    layout.RETRY = Retry(num_attempts=3, first_delay_seconds=0.001)
    base, run = folder / "base", folder / "run"
    Attempt.claim(base)
    ranks = [in_fork(lambda rank=rank: save(base, OLD, rank, 20.0)) for rank in (0, 1)]
    assert [exit_code(process) for process in ranks] == [0, 0]

    points: list[dict[str, Any]] = []
    for rank in (0, 1):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(base, run)
        for number, call in enumerate(trace(run, rank), start=1):
            if (len(points) + 1) % every == 0 or every == 1:
                faults = [f for f in FAULTS if call.startswith("write") or f not in ONLY_WRITES]
                outcomes = {f: outcome(base, run, rank, number, f) for f in faults}
            else:
                outcomes = {}
            points.append({"rank": rank, "number": number, "call": call, "outcomes": outcomes})
    print(json.dumps([point for point in points if point["outcomes"]]))


if __name__ == "__main__":
    main()
