"""A rank of a real run with known sleeps and a known death; it writes down the truth itself.

    python time_ledger_ranks.py TRUTH.jsonl -- the words of `electra-dist pretrain`

Around each thing that the ledger of time must tell apart stands a stop-watch of its own, and inside
it a sleep. Rank VICTIM of the first life sends itself the signal FATE right after step KILL_AFTER.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.cli import main
from electra_dist.data.stream import CorpusStream
from electra_dist.runtime import times
from electra_dist.train import build, loop

times.EVERY_SECONDS = 1.0
TRUTH = Path(sys.argv[1])
RANK = int(os.environ.get("RANK", "0"))
KILL_AFTER = 22
SLEEPS = {"data_wait": 0.05, "step": 0.15, "save": 0.4, "evaluation": 0.6, "start_up": 1.0}


def note(kind: str, **more: Any) -> None:
    if RANK == 0:
        with TRUTH.open("a") as file:
            file.write(json.dumps({"kind": kind, "time": time.time(), **more}) + "\n")


def watched(owner: Any, name: str, part: str) -> None:
    """Put a sleep and a stop-watch around `owner.name`."""
    inner: Callable[..., Any] = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        time.sleep(SLEEPS[part])
        result = inner(*args, **kwargs)  # where it fails, its time is waiting, not work
        note(part, seconds=time.monotonic() - started)
        return result

    setattr(owner, name, outer)


def die_after_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """As soon as step KILL_AFTER of the first life is made, a rank dies by its own hand."""

    def outer(run: Any, *args: Any) -> Any:
        result = step(run, *args)
        number = run.attempt.number
        note("stepped", step=run.state.step + 1)
        if (number, run.state.step + 1) == (1, KILL_AFTER) and int(os.environ["VICTIM"]) == RANK:
            (TRUTH.parent / "killed").write_text(repr(time.time()))
            os.kill(os.getpid(), signal.Signals[os.environ["FATE"]])
        return result

    return outer


note("launched", launched=float(os.environ["ELECTRA_DIST_LAUNCHED"]))
watched(CorpusStream, "micro_batches", "data_wait")
watched(loop, "step", "step")
watched(CheckpointStore, "save", "save")
watched(CheckpointStore, "wait", "save")
watched(loop, "evaluate", "evaluation")
watched(build, "make_engine", "start_up")
loop.step = die_after_step(loop.step)
sys.exit(main(sys.argv[3:]))
