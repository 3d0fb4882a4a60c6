"""mosaicml-streaming's plan of one epoch, timed: `python plan.py NUM_ROWS`, one JSON line out.

Its own functions are called as its dataset calls them for the first batch after a resume at 60 % of
the epoch (streaming.base.batching.random): partition, shuffle, look-up. The package's __init__,
which imports the clients of five clouds, is not run.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import time
import types
from pathlib import Path

import numpy as np

BATCH, SHARD_ROWS = 256, 262_144
"""Rows of a shard: its 64 MiB default, at 128 tokens of 16 bits."""


def main() -> None:
    """Time one plan and take the process's peak memory."""
    num_rows = int(sys.argv[1])
    found = importlib.util.find_spec("streaming")
    assert found is not None, "mosaicml-streaming is not installed"
    assert found.origin is not None
    for name in ("streaming", "streaming.base"):
        package = types.ModuleType(name)
        folder = Path(found.origin).parent.joinpath(*name.split(".")[1:])
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    full, rest = divmod(num_rows, SHARD_ROWS)
    shards = np.array([SHARD_ROWS] * full + [rest] * (rest > 0), np.int64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    ids = get_partitions(
        "relaxed", num_rows, 1, 1, 1, 1, BATCH, num_rows * 6 // 10 // BATCH * BATCH
    )
    shuffle = get_shuffle("py1e", shards, 1, 9176, 0, 4_000_000)
    plan = np.where(ids != -1, shuffle[ids], -1)
    seconds = time.perf_counter() - started
    assert plan[0, 0, 0, 0].shape == (BATCH,)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "bytes": (after - before) * 1024}))


if __name__ == "__main__":
    main()
