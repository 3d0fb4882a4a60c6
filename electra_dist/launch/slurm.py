"""From a config and a cluster to a batch script, as text: a pure function; and its submission.

The body of the script is the one of slurm/pretrain.sbatch, which works by itself. Every value that
comes from a user stands in single quotes (`shlex.quote`), so that no shell reads it; in #SBATCH
lines, which sbatch reads itself and no shell does, a value with blanks is quoted the same way.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from electra_dist.config import variables
from electra_dist.config.cluster import ClusterConfig
from electra_dist.errors import UserError

SUBMIT_SECONDS = 120.0

BODY = """\
# Signals go down: this shell -> electra-dist (the supervisor) -> srun -> ranks. Why it ended comes
# back through the run folder: srun rewrites exit codes. Slurm sends USR1 to this shell ahead of the
# time limit, and TERM at scancel.
signals=() supervisor=""
note() {
    signals+=("$1")
    if [[ -n $supervisor ]]; then kill -s "$1" "$supervisor" 2>/dev/null; fi
}
trap 'note USR1' USR1
trap 'note TERM' TERM

newest=$(find "$run/attempts" -maxdepth 1 -name '[0-9]*' -printf '%f\\n' 2>/dev/null |
    sort -n | tail -n 1)
"$PYTHON" -m electra_dist pretrain "$@" --launcher srun --out "$run" &
supervisor=$!
for signal in "${signals[@]}"; do # that came before there was a supervisor
    kill -s "$signal" "$supervisor" 2>/dev/null
done
while kill -0 "$supervisor" 2>/dev/null; do
    wait "$supervisor" # a signal ends the wait, not the supervisor
done
wait "$supervisor"
code=$?

# Decides by RUN/attempts/NNNN/exit.json and the signals: `scontrol requeue`, or leave. A TERM from
# here on just ends it, and a USR1 must not: what is ignored stays so through exec.
trap '' USR1
exec "$PYTHON" -m electra_dist requeue "$run" --after-attempt "${newest:-0}" --code "$code" \\
    --signals "${signals[*]}" --max-fruitless "${MAX_FRUITLESS:-3}"
"""
"""Of every pretraining script; slurm/pretrain.sbatch ends with it, a test compares."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One submission."""

    run: Path
    """RUN, absolute: the job starts elsewhere."""
    words: tuple[str, ...]
    """Of `electra-dist pretrain`: the config and overrides, without --out."""
    num_nodes: int
    python: str
    """Where the cluster names none."""
    time: str | None = None
    """In place of the cluster's."""
    no_kill: bool = False
    """Keep the allocation when a node fails: the supervisor goes on with the others."""
    is_chained: bool = False
    """Another job goes on where this one stops: no requeue."""
    left_out: tuple[str, ...] = ()
    """Nodes that are not fit to train."""


def batch_script(job: Job, cluster: ClusterConfig) -> str:
    """The text of RUN/submit.sbatch."""
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH {word}" for word in sbatch_words(job, cluster)]
    lines += [
        "#",
        "# Written by `electra-dist submit slurm`; submit it again as it is: sbatch FILE.",
        "set -u",
        f"run={shlex.quote(str(job.run))}",
        f"set -- {' '.join(map(shlex.quote, pretrain_words(job, cluster)))}".rstrip(),
        f"PYTHON={shlex.quote(cluster.python or job.python)}",
        *([] if may_requeue(job, cluster) else ["MAX_FRUITLESS=0"]),
        *setting(cluster),
        "",
        BODY,
    ]
    return "\n".join(lines)


def pretrain_words(job: Job, cluster: ClusterConfig) -> list[str]:
    """Of `electra-dist pretrain --launcher srun --out RUN`."""
    words = list(job.words)
    if cluster.tasks == "per_node":
        words += ["--nproc", str(cluster.num_ranks_per_task)]
    return [*words, *(["--exclude-bad-nodes"] if cluster.exclude_bad_nodes else [])]


def options(job: Job, cluster: ClusterConfig) -> dict[str, str | int | bool]:
    """Options of sbatch by their long names, True for those without a value."""
    named: dict[str, str | int | bool | None] = {
        "job-name": f"electra-{job.run.name}",
        "account": cluster.account,
        "partition": cluster.partition,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "reservation": cluster.reservation,
        "nodes": job.num_nodes,
        "ntasks-per-node": cluster.num_tasks_per_node,
        "cpus-per-task": (cluster.cpus_per_task or 0) * cluster.num_ranks_per_task or None,
        "exclude": ",".join(job.left_out) or None,
        "mem": cluster.mem,
        "gres": _gres(cluster),
        "time": job.time or cluster.time,
        "signal": f"B:USR1@{cluster.signal_lead_seconds}",
        "output": f"{str(job.run).replace('%', '%%')}/slurm-%j.out",
        "open-mode": "append",
    }
    named["requeue" if may_requeue(job, cluster) else "no-requeue"] = True
    named |= {"exclusive": True} if cluster.exclusive else {}
    named |= {"no-kill": True} if job.no_kill else {}
    return {name: value for name, value in named.items() if value is not None}


def sbatch_words(job: Job, cluster: ClusterConfig) -> list[str]:
    """What stands behind #SBATCH, a line each."""
    named = options(job, cluster).items()
    words = [f"--{name}" if v is True else f"--{name}={quoted(str(v))}" for name, v in named]
    return [*words, *cluster.sbatch]


def may_requeue(job: Job, cluster: ClusterConfig) -> bool:
    """Whether the site allows it, and no other job of a chain goes on instead."""
    return cluster.requeue and not job.is_chained


def quoted(value: str) -> str:
    """A value of an option as sbatch reads it in an #SBATCH line: blanks and quotes in quotes.

    Raises:
        UserError: the value has a line break, which would end the #SBATCH line.
    """
    if set(value) & set("\n\r\0"):
        raise UserError(f"{value!r} can't stand in an #SBATCH line; take the line break out")
    if not set(value) & set(" \t'\"\\#"):
        return value
    if "'" not in value:
        return f"'{value}'"
    if not set(value) & set('"\\'):
        return f'"{value}"'
    raise UserError(f"{value!r} can't stand in an #SBATCH line; leave one kind of quotes out")


def _gres(cluster: ClusterConfig) -> str | None:
    if not cluster.gpus_per_node:
        return None
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    return f"gpu:{kind}{cluster.gpus_per_node}"


def setting(cluster: ClusterConfig) -> list[str]:
    """Modules and variables of the site, in lines for bash."""
    lines = (
        [f"module load {' '.join(map(shlex.quote, cluster.modules))}"] if cluster.modules else []
    )
    if cluster.network_interface:
        interface = shlex.quote(cluster.network_interface)
        lines.append(f"export NCCL_SOCKET_IFNAME={interface} GLOO_SOCKET_IFNAME={interface}")
    if cluster.master_addr_suffix:
        lines += [
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f'export MASTER_ADDR="$first"{shlex.quote(cluster.master_addr_suffix)}',
        ]
    if cluster.scratch:
        # $USER and the like are the site's own words and are expanded by us, not by the shell.
        lines += [
            f"scratch={_expandable(cluster.scratch)}/electra_dist",
            'export TORCH_EXTENSIONS_DIR="$scratch/extensions" TRITON_CACHE_DIR="$scratch/triton"',
            'export TORCHINDUCTOR_CACHE_DIR="$scratch/inductor"',
        ]
    if cluster.container:
        rank = shlex.join([*cluster.container, "electra-dist"])
        lines.append(f"export {variables.RANK_COMMAND}={shlex.quote(rank)}")
    for name, value in cluster.environment.items():
        lines.append(f"export {name}={shlex.quote(value)}")
    return lines


def _expandable(text: str) -> str:
    """Quoted for the shell, but for $NAME, which it replaces on the node."""
    parts = re.split(r"\$([A-Za-z_]\w*)", text)  # text and names in turn
    quoted = [shlex.quote(part) if part else "" for part in parts]
    quoted[1::2] = [f'"${name}"' for name in parts[1::2]]
    return "".join(quoted)


def submit(script: Path, *, test_only: bool, num_jobs: int) -> list[str]:
    """Sbatch a script, once, or as a chain of jobs that go on with one run.

    The next job starts when the one before has ended without finishing the run; once the run is
    finished, or was asked to stop, Slurm cancels the others.

    Returns:
        The jobs' ids; what sbatch answers with `test_only`.

    Raises:
        UserError: sbatch is not here, or does not take it.
    """
    ids: list[str] = []
    for _ in range(1 if test_only else num_jobs):
        words = ["--test-only"] if test_only else ["--parsable"]
        if ids:
            words += [f"--dependency=afternotok:{ids[-1]}", "--kill-on-invalid-dep=yes"]
        ids.append(_sbatch([*words, str(script)]))
    return ids


def _sbatch(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            ["sbatch", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=SUBMIT_SECONDS,
        )
    except FileNotFoundError:
        raise UserError(
            "sbatch is not on the PATH of this machine; submit from a login node, or look at the "
            "script with --dry-run"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"sbatch gave no answer in {SUBMIT_SECONDS:.0f} s; see if slurmctld is up"
        ) from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"sbatch refused the script: {said}; change --cluster or its file")
    return (done.stdout or done.stderr).strip().partition(";")[0]
