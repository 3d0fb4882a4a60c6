"""The words of `submit deepspeed`, `submit mpi` and `submit torchrun`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from electra_dist.cli.parser import Handler, command
from electra_dist.commands import hosts
from electra_dist.launch.hosts import PDSH, RUNNERS


def add_hosts(submit: Any) -> None:
    """Declare them."""
    deepspeed = _on_hosts(submit, "deepspeed", hosts.submit_deepspeed)
    deepspeed.add_argument(
        "--launcher", choices=RUNNERS, default=PDSH, help="how it reaches the hosts (default pdsh)"
    )
    deepspeed.add_argument(
        "--launcher-args", default="", metavar="ARGS", help="more words for that, in one: '-x A=1'"
    )
    mpi = _on_hosts(submit, "mpi", hosts.submit_mpi)
    mpi.add_argument(
        "--mpirun-args", default="", metavar="ARGS", help="more words for mpirun, in one"
    )
    _on_hosts(submit, "torchrun", hosts.submit_torchrun)


def _on_hosts(submit: Any, name: str, handler: Handler) -> Any:
    parser = command(submit, name, handler)
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--recipe", help="as in pretrain; so are --section.field value")
    parser.add_argument("--out", required=True, type=Path, metavar="RUN")
    parser.add_argument(
        "--hostfile", required=True, type=Path, metavar="FILE", help="lines such as `node0 slots=8`"
    )
    parser.add_argument(
        "--master-addr", metavar="HOST", help="rank 0's host, as all know it (default: the first)"
    )
    parser.add_argument(
        "--master-port", type=int, metavar="PORT", help="default: one made from RUN's path"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the command, run nothing")
    return parser
