"""One launcher on each node: it starts that node's ranks of a world of several nodes.

    srun, one task a node ──> electra-dist pretrain --launcher node --nproc M ──> M ranks

Nobody restarts anything here: the supervisor stands outside, in the batch script.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from electra_dist.launch.local import (
    GRACE_SECONDS,
    KILL_SECONDS,
    STOPPED,
    USER_MISTAKE,
    rank_variables,
    run_processes,
)


@dataclass(frozen=True, kw_only=True)
class Node:
    """Which of the launchers this one is, and where all ranks meet."""

    number: int
    """0 <= number < num_nodes."""
    num_nodes: int
    num_ranks: int
    """On each node."""
    master_addr: str
    master_port: int

    def environs(self, environ: Mapping[str, str]) -> list[dict[str, str]]:
        """Of each rank of this node, from one without another launcher's variables."""
        return [
            {
                **environ,
                **rank_variables(
                    local_rank,
                    self.num_ranks,
                    port=self.master_port,
                    address=self.master_addr,
                    node=self.number,
                    num_nodes=self.num_nodes,
                ),
            }
            for local_rank in range(self.num_ranks)
        ]


def run_node(command: list[str], node: Node, environ: Mapping[str, str]) -> int:
    """Run `command` as the ranks of this node; forward signals; return when all are gone.

    Call it in the main thread: it replaces the handlers of the forwarded signals while it runs.

    Returns:
        0 if all ended with 0, 75 or 2 if none ended worse, else 1; exit.json has the truth.
    """
    codes = run_processes(
        command, node.environs(environ), grace_seconds=GRACE_SECONDS, kill_seconds=KILL_SECONDS
    )
    kinds = {code for code in codes if code}
    if kinds <= {STOPPED}:
        return STOPPED if kinds else 0
    return USER_MISTAKE if kinds <= {STOPPED, USER_MISTAKE} else 1
