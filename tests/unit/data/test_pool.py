"""Ctrl-C at any moment of a pool's start ends it at once, in one place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys
from multiprocessing import util
from electra_dist.data.pool import spawned_pool

started = 0

def spawn_and_interrupt(*arguments):
    global started
    pid = spawn(*arguments)
    started += 1
    if started == {number}:
        os.killpg(0, signal.SIGINT)
    return pid

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    spawn, util.spawnv_passfds = util.spawnv_passfds, spawn_and_interrupt
    try:
        with spawned_pool(2) as pool:
            list(pool.map(abs, range(4)))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("number", [2, 3])  # the first is multiprocessing's tracker of semaphores
def test_an_interrupt_while_a_worker_starts_ends_all_without_a_trace(
    tmp_path: Path, number: int
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(number=number))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
