"""From a run and a site to the text of a batch script: a pure function. No torch, no Slurm.

    clusters/NAME.toml ─┐
    config, RUN ────────┴─> batch_script() ─> RUN/submit.sbatch ─> sbatch

The script is complete: it needs nothing but electra-dist on the nodes, can be read, edited and
given to sbatch again. What a user wrote reaches the shell as one quoted word (`quoted`).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from electra_dist.config.checks import require
from electra_dist.launch.clusters import Cluster, Container
from electra_dist.launch.requeue import MAX_FRUITLESS
from electra_dist.launch.slurm_body import CACHES, LAUNCH


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is submitted; paths are absolute."""

    config: Path
    run: Path
    work_folder: Path
    """Relative paths of the config count from here."""
    num_nodes: int
    gpus_per_node: int | None = None
    """None: the cluster's."""
    time: str | None = None
    """None: the cluster's."""
    survives_nodes: bool = False
    """resilience.min_world_size is set: the job keeps what is left of its nodes."""
    is_chained: bool = False
    """Another job goes on where this one stops: no requeue."""
    num_micro_batches: int | None = None
    """The largest number of ranks that the run can use."""


def batch_script(request: Request, cluster: Cluster) -> str:
    """The batch script, whole.

    Raises:
        UserError: the run has fewer micro-batches than the job would have ranks.
    """
    options = "\n".join(f"#SBATCH {option}" for option in sbatch_options(request, cluster))
    parts = [
        f"#!/usr/bin/env bash\n{options}",
        "# Made by `electra-dist submit slurm`. Read it, edit it, give it to sbatch again.",
        "set -uo pipefail",
        f"cd {quoted(str(request.work_folder))} || exit 1",
        *_environment(cluster),
        *_network(cluster),
        _scratch(cluster) + CACHES,
        *_container(request, cluster),
        _run(request, cluster),
        LAUNCH,
    ]
    return "\n\n".join(parts)


def _run(request: Request, cluster: Cluster) -> str:
    max_fruitless = 0 if request.is_chained or not cluster.requeue else MAX_FRUITLESS
    return (
        f"run={quoted(str(request.run))}\n"
        f'words=({quoted(str(request.config))} --out "$run")\n'
        f"max_fruitless={max_fruitless}"
    )


def sbatch_options(request: Request, cluster: Cluster) -> list[str]:
    """The words of the #SBATCH lines; each is free of blanks, but for a quoted output path.

    Raises:
        UserError: as `batch_script`.
    """
    gpus = cluster.gpus_per_node if request.gpus_per_node is None else request.gpus_per_node
    tasks = cluster.tasks_per_node or max(1, gpus)
    ranks = request.num_nodes * tasks
    require(
        request.num_micro_batches is None or ranks <= request.num_micro_batches,
        "--nodes",
        request.num_nodes,
        f"makes {ranks} ranks, but a step has only {request.num_micro_batches} micro-batches",
        "take fewer nodes, a larger batch.global_batch_size or a smaller batch.micro_batch_size",
    )
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    gpu_words = {
        "gpus-per-node": f"--gpus-per-node={kind}{gpus}",
        "gres": f"--gres=gpu:{kind}{gpus}",
    }
    site = {
        name: getattr(cluster, name)
        for name in ("account", "partition", "qos", "constraint", "reservation", "exclude")
    }
    return [
        f"--job-name={re.sub(r'[^A-Za-z0-9_.-]', '_', request.run.name) or 'electra'}",
        *(f"--{name}={value}" for name, value in site.items() if value),
        f"--nodes={request.num_nodes}",
        f"--ntasks-per-node={tasks}",
        *([f"--cpus-per-task={cluster.cpus_per_task}"] if cluster.cpus_per_task else []),
        *([gpu_words[cluster.gpu_option]] if gpus else []),
        *([f"--mem={cluster.memory}"] if cluster.memory else []),
        *(["--exclusive"] if cluster.exclusive else []),
        f"--time={request.time or cluster.time}",
        f"--signal=B:USR1@{cluster.lead_seconds}",
        "--no-requeue" if request.is_chained or not cluster.requeue else "--requeue",
        *(["--no-kill"] if request.survives_nodes else []),
        "--open-mode=append",
        *_output(request.run),
        *cluster.sbatch_options,
    ]


def quoted(text: str) -> str:
    """`text` as one word of a shell, whatever it holds."""
    return shlex.quote(text)


def with_variables(text: str) -> str:
    """The same, but that $NAME and ${NAME} are variables; one that is not set ends the script."""
    parts = re.split(r"\$(?:(\w+)|\{(\w+)\})", text, flags=re.ASCII)
    words = [quoted(parts[0]) if parts[0] else ""]
    for bare, braced, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        name = bare or braced
        # A positional parameter such as $1 is not meant: it stays as it stands.
        is_name = not name[0].isdigit()
        words.append(f'"${{{name}:?}}"' if is_name else quoted(f"${name}"))
        words.append(quoted(rest) if rest else "")
    return "".join(words) or "''"


def _output(run: Path) -> list[str]:
    """Where the job writes. sbatch knows quotes and %, and has no way to write them plainly."""
    path = str(run / "slurm-%j.out")
    is_plain = not re.search(r"[\"'\\%\n\r]", str(run))
    return [f'--output="{path}"'] if is_plain else ["--output=slurm-%j.out"]


def _environment(cluster: Cluster) -> list[str]:
    parts = []
    if cluster.modules:
        modules = " ".join(map(quoted, cluster.modules))
        parts.append(f"module purge\nmodule load {modules} || exit 1")
    if cluster.venv:
        parts.append(f". {quoted(f'{cluster.venv}/bin/activate')} || exit 1")
    if cluster.environment:
        lines = [f"export {name}={quoted(value)}" for name, value in cluster.environment.items()]
        parts.append("\n".join(lines))
    return parts


def _network(cluster: Cluster) -> list[str]:
    lines = []
    if cluster.interface:
        names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
        lines += [f"export {name}={quoted(cluster.interface)}" for name in names]
    if cluster.master_addr_suffix:
        lines += [
            "# Rank 0 is on the node of this script, under its name in the fast network.",
            f'export MASTER_ADDR="$SLURMD_NODENAME"{quoted(cluster.master_addr_suffix)}',
        ]
    return ["\n".join(lines)] if lines else []


def _scratch(cluster: Cluster) -> str:
    return f"scratch={with_variables(cluster.scratch)}\n" if cluster.scratch else ""


def _container(request: Request, cluster: Cluster) -> list[str]:
    """How srun starts a rank in its image: variables that `pretrain --launcher srun` reads."""
    box = cluster.container
    if box is None:
        return []
    mounts = [*box.mounts, str(request.run), str(request.work_folder)]
    flags, program = _container_words(box, [m if ":" in m else f"{m}:{m}" for m in mounts])
    lines = ["# Ranks run in a container; each variable holds words as a shell would read them."]
    lines += [f"export ELECTRA_DIST_SRUN_FLAGS={quoted(shlex.join(flags))}"] if flags else []
    lines += [f"export ELECTRA_DIST_RANK_PROGRAM={quoted(shlex.join(program))}"]
    return ["\n".join(lines)]


def _container_words(box: Container, mounts: list[str]) -> tuple[list[str], list[str]]:
    if box.runtime == "pyxis":
        words = [f"--container-image={box.image}", f"--container-mounts={','.join(mounts)}"]
        return words, [box.python]
    binds = [word for mount in mounts for word in ("--bind", mount)]
    return [], ["apptainer", "exec", "--nv", *binds, box.image, box.python]
