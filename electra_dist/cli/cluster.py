"""The words of `submit` and `requeue`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from electra_dist.cli.parser import command, group
from electra_dist.commands import cluster


def add_cluster(parent: Any) -> None:
    """Declare `submit` and `requeue`."""
    submit = group(parent, "submit", "hand a run to a scheduler")
    slurm = command(submit, "slurm", cluster.submit_slurm)
    slurm.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml")
    slurm.add_argument("--recipe", help="as in pretrain; so are --section.field value")
    slurm.add_argument("--out", required=True, type=Path, metavar="RUN")
    slurm.add_argument(
        "--cluster",
        required=True,
        metavar="NAME|PATH",
        help="facts of the site: a TOML file, or its name in slurm/clusters",
    )
    slurm.add_argument("--nodes", type=int, default=1, help="default %(default)s")
    slurm.add_argument("--gpus-per-node", type=int, metavar="M", help="default: the cluster's")
    slurm.add_argument("--time", help="limit of one job, such as 24:00:00 (default: the cluster's)")
    slurm.add_argument(
        "--chain",
        type=int,
        default=1,
        metavar="N",
        help="N jobs, each going on where the last one stopped, instead of requeueing one",
    )
    only = slurm.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="show the script, submit nothing")
    only.add_argument("--test-only", action="store_true", help="let Slurm check it, submit nothing")
    requeue = command(parent, "requeue", cluster.requeue)
    requeue.add_argument("run", type=Path, metavar="RUN")
    requeue.add_argument(
        "--after-attempt", type=int, required=True, metavar="N", help="newest one before this job"
    )
    requeue.add_argument(
        "--launcher-code", type=int, required=True, metavar="CODE", help="of `pretrain`"
    )
    requeue.add_argument(
        "--signals", default="", metavar="WORDS", help="that the batch shell got: 'USR1 TERM'"
    )
    requeue.add_argument(
        "--max-fruitless",
        type=int,
        default=3,
        metavar="K",
        help="ends in a row without a new checkpoint that are one too many; 0: never requeue "
        "(default %(default)s)",
    )
