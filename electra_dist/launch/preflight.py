"""Are the nodes of this job fit to train? The doctor as a job step, before the ranks.

    every node is fit                        train
    some are not, enough ranks are left      train on the others (resilience.min_world_size)
    some are not, too few are left           leave: the job is requeued without them
    none is, of several                      leave for good: that is not the nodes' fault

What is found stands in RUN/bad_nodes.jsonl; the end of the job reads it there (`launch.slurm_job`),
and so does the next submission of the run.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from electra_dist.config.slurm_names import expand_hostlist
from electra_dist.launch.records import append_record, read_lines
from electra_dist.launch.srun import Allocation

log = logging.getLogger(__name__)

VERDICT = re.compile(r"(OK|BAD) node (\S+?)(?:: (.*))?")
STEP_SECONDS = 300.0
"""As long as a node has for its verdict: a torch from a cold shared disk takes a minute to load."""
REMEMBERED_SECONDS = 24 * 3600.0
"""So long a submission leaves out what was found bad: nodes get mended."""
FILE = "bad_nodes.jsonl"


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What the doctor has found in a job."""

    bad: Mapping[str, str]
    """By node: which of its checks failed, and how."""
    left_out: tuple[str, ...]
    """Those that the ranks are kept off, here and after a requeue."""
    why_not: str | None
    """Why there can't be any training in this allocation; None: there can."""


def examine_nodes(
    command: Sequence[str],
    allocation: Allocation,
    environ: Mapping[str, str],
    *,
    seconds: float = STEP_SECONDS,
) -> dict[str, str]:
    """Run the doctor on each node of the allocation; returns the bad ones, with what is bad.

    Args:
        command: the doctor's program and words, which print its verdict.
        allocation: see there.
        environ: for srun.
        seconds: a node without a verdict by then is bad.
    """
    nodes = expand_hostlist(allocation.node_list)
    step = ["srun", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1"]
    # One bad node must not cut off the others' verdicts, whatever slurm.conf says.
    step += ["--kill-on-bad-exit=0", "--wait=0", "--overlap", "--disable-status"]
    if allocation.cpus_per_task and allocation.tasks_per_node:  # all of a node's, as its ranks have
        num_cpus = int(allocation.cpus_per_task) * allocation.tasks_per_node
        step.append(f"--cpus-per-task={num_cpus}")
    try:
        done = subprocess.run(
            [*step, *command],
            env=dict(environ),
            stdout=subprocess.PIPE,
            text=True,
            timeout=seconds,
            check=False,
        )
        output, missing = done.stdout, f"the doctor ended without a verdict ({done.returncode})"
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        output = said.decode(errors="replace") if isinstance(said, bytes) else said
        missing = f"no verdict in {seconds:.0f} s"
    except OSError as error:
        output, missing = "", f"srun can't be started ({error.strerror})"
    return read_verdicts(output, nodes, missing)


def read_verdicts(output: str, nodes: Sequence[str], missing: str) -> dict[str, str]:
    """The bad nodes, of what `doctor --verdict` has printed on all of them.

    A node that does not see another one's file is not to blame if that one is bad by itself.

    Args:
        output: lines of all nodes.
        nodes: that were asked.
        missing: what is said of a node without a line.
    """
    verdicts = dict.fromkeys(nodes, missing)
    for line in output.splitlines():
        found = VERDICT.fullmatch(line.strip())
        if found and found[2] in verdicts:
            verdicts[found[2]] = "" if found[1] == "OK" else found[3] or "unfit"
    bad = {node: words for node, words in verdicts.items() if words}
    by_themselves = {n: words for n, words in bad.items() if not _only_misses_others(words)}
    return by_themselves or bad


def _only_misses_others(words: str) -> bool:
    return {part.partition(":")[0] for part in words.split(" | ")} == {"visibility"}


def judged(bad: Mapping[str, str], allocation: Allocation, least_nodes: int) -> Examined:
    """What follows from the bad nodes of an allocation.

    Args:
        bad: by name, what is bad about them.
        allocation: see there.
        least_nodes: as many must be left to train in this allocation.
    """
    number = allocation.num_nodes
    names = ", ".join(f"{node} ({words})" for node, words in bad.items())
    if len(bad) == number > 1:
        first, words = next(iter(bad.items()))
        why = f"not one of {number} nodes is fit, so it is not the nodes; {first}: {words}"
        return Examined(bad=bad, left_out=(), why_not=why)
    is_enough = number - len(bad) >= least_nodes
    why_not = None if is_enough or not bad else f"not fit to train: {names}"
    return Examined(bad=bad, left_out=tuple(bad), why_not=why_not)


def write_down(run: Path, examined: Examined, job_id: str, restart_count: int) -> None:
    """Append to RUN/bad_nodes.jsonl, and say it in the job's output; nothing if all are fit."""
    for node, words in examined.bad.items():
        log.error("node %s is not fit to train: %s", node, words)
    if not examined.bad:
        return
    if examined.why_not:
        log.error("no rank is started: %s", examined.why_not)
    record = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": round(time.time(), 3),
        "job": job_id,
        "restart_count": restart_count,
        "bad": dict(examined.bad),
        "left_out": list(examined.left_out),
        "why_not": examined.why_not,
    }
    try:
        run.mkdir(parents=True, exist_ok=True)
        append_record(run / FILE, record)
    except OSError as error:
        log.error("%s could not be written (%s)", run / FILE, error)


def forget_the_visit(run: Path) -> None:
    """Remove what the doctor's tasks have left in RUN for each other."""
    shutil.rmtree(run / "doctor", ignore_errors=True)


def found_in_job(run: Path, job_id: str, restart_count: int) -> Examined | None:
    """What this start of this job has found; None: nothing bad, or nobody has looked."""
    for line in reversed(read_lines(run / FILE)):
        if (line.get("job"), line.get("restart_count")) == (job_id, restart_count):
            return Examined(
                bad=line["bad"], left_out=tuple(line["left_out"]), why_not=line["why_not"]
            )
    return None


def lately_bad(run: Path, now: float | None = None) -> tuple[str, ...]:
    """Nodes that a job of this run has left out not long ago.

    Args:
        run: RUN.
        now: seconds since 1970, for tests; the clock's time if None.
    """
    since = (time.time() if now is None else now) - REMEMBERED_SECONDS
    lines = [line for line in read_lines(run / FILE) if line.get("seconds", 0.0) >= since]
    return tuple(sorted({node for line in lines for node in line["left_out"]}))
