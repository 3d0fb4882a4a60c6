"""The words of `submit` and `requeue`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from electra_dist.cli.hosts import add_hosts
from electra_dist.cli.parser import Handler, command, group
from electra_dist.commands import submit


def add_submit(parent: Any) -> None:
    """Declare `submit` and `requeue`."""
    words = group(
        parent, "submit", "run on a cluster: through its scheduler, or on the hosts of a hostfile"
    )
    slurm = _to_a_cluster(words, "slurm", submit.submit_slurm)
    slurm.add_argument(
        "--chain", type=int, default=1, metavar="N", help="N jobs, each after the one before"
    )
    slurm.add_argument("--test-only", action="store_true", help="let Slurm check it, run nothing")
    add_hosts(words)
    _to_a_cluster(
        words, "submitit", submit.submit_submitit, or_else="; local: this machine, M ranks"
    )
    requeue = command(parent, "requeue", submit.requeue)
    requeue.add_argument("run", type=Path, metavar="RUN")
    requeue.add_argument(
        "--after-attempt", type=int, required=True, metavar="N", help="newest one before this job"
    )
    requeue.add_argument("--signals", default="", help="that the batch shell has got: USR1 TERM")
    requeue.add_argument(
        "--code", type=int, default=1, help="exit code of pretrain, for want of an exit.json"
    )
    requeue.add_argument(
        "--max-fruitless",
        type=int,
        default=3,
        metavar="K",
        help="ends in a row without a new checkpoint, of which the last one is not requeued; "
        "0: never requeue (default %(default)s)",
    )


def _to_a_cluster(words: Any, name: str, handler: Handler, or_else: str = "") -> Any:
    parser = command(words, name, handler)
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--recipe", help="as in pretrain; so are --section.field value")
    parser.add_argument("--out", required=True, type=Path, metavar="RUN")
    known = f"slurm/clusters/NAME.toml, or a file{or_else}"
    parser.add_argument("--cluster", required=True, metavar="NAME|PATH", help=known)
    parser.add_argument("--nodes", type=int, default=1, help="default %(default)s")
    parser.add_argument("--gpus-per-node", type=int, metavar="M", help="in place of the cluster's")
    parser.add_argument(
        "--time", metavar="T", help="minutes, H:MM:SS or D-HH:MM:SS, in place of the cluster's"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script, write nothing")
    return parser
