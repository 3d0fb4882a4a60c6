"""Steps that take turns.

A turn is two steps, of which the second counts: in a run a step follows one of its own. One that
follows another process's may wait for memory which that one gave back, and which the host of a
virtual machine took: with logits everywhere the peer's step took 2.9 s, and 1.55 s after its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Step = Callable[[], Any]
Turn = Callable[[], float]
"""Takes its steps; the seconds of the one that counts."""


def turn(step: Step, clock: str = "wall") -> Turn:
    """Turns of a step in this process."""
    now = CLOCKS[clock]

    def take() -> float:
        step()
        started = now()
        step()
        return now() - started

    return take


def serve(take: Turn) -> None:
    """Take a turn for each line that is read, and answer with its seconds."""
    for _ in sys.stdin:
        print(take(), flush=True)


@contextmanager
def in_process(script: str | Path, *arguments: object) -> Iterator[Turn]:
    """Turns of a script that serves them, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, *map(str, (script, *arguments))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    ask, answers = process.stdin, process.stdout

    def take() -> float:
        print(file=ask, flush=True)
        answer = answers.readline()
        if not answer:
            sys.exit(f"{script} {' '.join(map(str, arguments))} ended; its last words are above")
        return float(answer)

    try:
        yield take
    finally:
        ask.close()
        process.wait()


def interleave(turns: dict[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Seconds by round, every second one the other way about; one before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, take in list(turns.items())[:: 1 if number % 2 else -1]:
            took = take()
            if number:
                seconds[name].append(took)
                print(f"round {number}  {name:32} {took:8.3f}", file=sys.stderr)
    return seconds


def ratio(top: Sequence[float], bottom: Sequence[float]) -> float:
    """Median of the rounds' ratios: what slows a whole round down falls out."""
    return statistics.median(a / b for a, b in zip(top, bottom, strict=True))
