"""DeepSpeed's own way to another number of ranks: ds_to_universal, then a load with load_universal.

    python benchmarks/peers/universal.py INPUT OUTPUT --memory|--time

converts a native checkpoint as `python -m deepspeed.checkpoint.ds_to_universal` does, in a process
of its own, and prints seconds and peak memory as JSON. It unpickles: only for files that the
benchmark itself has made.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from electra_dist.engine.deepspeed import DeepSpeedEngine

TAG = "step"


def save(engine: DeepSpeedEngine, folder: Path) -> None:
    """A native checkpoint."""
    with contextlib.redirect_stdout(sys.stderr):
        engine._engine.save_checkpoint(str(folder), tag=TAG)


def convert(folder: Path, *, measure_memory: bool) -> dict[str, float]:
    """Make the universal folder anew; seconds, or bytes, beyond those of a process that waits."""
    shutil.rmtree(folder / "universal", ignore_errors=True)
    (folder / "latest_universal").unlink(missing_ok=True)
    what = "--memory" if measure_memory else "--time"
    command = [sys.executable, "-m", "benchmarks.peers.universal"]
    command += [str(folder / TAG), str(folder / "universal"), what]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS")
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ds_to_universal: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def load(engine: DeepSpeedEngine, folder: Path) -> None:
    """Fill the engine from the universal folder."""
    engine._engine._config.load_universal_checkpoint = True
    with contextlib.redirect_stdout(sys.stderr):
        path, _ = engine._engine.load_checkpoint(str(folder), tag="universal")
    if path is None:
        raise RuntimeError("load_checkpoint found nothing to load, and says so in a warning only")


class PeakOfTree(threading.Thread):
    """The most memory that this process and its children have together, shared pages once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._has_ended = threading.Event()
        self._before = self._now()

    def run(self) -> None:
        """Look ten times a second: a look walks the page tables and takes some ms."""
        while not self._has_ended.wait(0.1):
            self.peak = max(self.peak, self._now() - self._before)

    def end(self) -> int:
        """Bytes beyond those at the start."""
        self._has_ended.set()
        self.join()
        return self.peak

    @staticmethod
    def _now() -> int:
        total = 0
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it may have ended since
                total += process.memory_full_info().pss
        return total


def main() -> None:
    """One conversion."""
    from deepspeed.checkpoint import ds_to_universal

    source, target, what = sys.argv[1:]
    sys.argv[1:] = ["--input_folder", source, "--output_folder", target, "--inject_missing_state"]
    result: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        args = ds_to_universal.parse_arguments()
        watch = PeakOfTree()
        if what == "--memory":
            watch.start()
        started = time.perf_counter()
        ds_to_universal.main(args)
        result["seconds"] = time.perf_counter() - started
        result["bytes"] = watch.end() if what == "--memory" else 0
    print(json.dumps(result))


if __name__ == "__main__":
    main()
