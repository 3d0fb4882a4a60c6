"""Starting a tiny run by some launcher, and what it leaves; for the tests of this folder."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.made_up import SMALLEST

ROOT = Path(__file__).parents[2]
SECONDS = 110.0
"""A start of two ranks takes 6-10 s, of two with DeepSpeed 13-24 s: longer than this is a hang."""

TINY = (
    SMALLEST
    + """\
[batch]
global_batch_size = 12
micro_batch_size = 4
[schedule]
num_steps = 4
warmup_steps = 1
[engine]
kind = "reference"
zero_stage = 1
threads_per_rank = 1
timeout_seconds = 60.0
[metrics]
log_every = 1
eval_every = 4
tensorboard = false
"""
)


@contextmanager
def started(
    *command: str | Path, output: Path, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher in the environment of a user, with this Python first; killed at the end."""
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "NPROC": "2",
        **variables,
    }
    # Launchers differ in the number of threads that they ask for; engine.threads_per_rank decides.
    environ.pop("OMP_NUM_THREADS", None)
    with output.open("wb") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env=environ,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(
    run: Path,
    *command: str | Path,
    launcher: str,
    num_ranks: int = 2,
    seconds: float = SECONDS,
    **variables: str,
) -> list[Any]:
    """Run to the end, check how it ended and who started it; its metrics without the clock."""
    output = run.with_name("output.txt")
    with started(*command, output=output, **variables) as process:
        code = process.wait(seconds)
    assert code == 0, output.read_text(errors="replace")[-4000:]
    ended = json.loads((run / "attempts" / "0001" / "exit.json").read_text())
    assert ended == {
        "reason": "finished",
        "step": 4,
        "checkpoint": "step_00000004",
        "exit_code": 0,
    }
    facts = json.loads((run / "environment.json").read_text())
    assert (facts["launcher"], facts["world_size"]) == (launcher, num_ranks)
    logs = {path.name for path in (run / "attempts" / "0001").glob("*.log")}
    assert logs == {f"rank_{rank:05}.log" for rank in range(num_ranks)}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert "eval" in lines[-1]
    return [{name: x for name, x in line.items() if name != "timing"} for line in lines]
