"""One launcher on each node: it starts that node's ranks of a world of several nodes.

    srun, one task a node ──> electra-dist pretrain --launcher node --nproc M ──> M ranks

Nobody restarts anything here: the supervisor stands outside, in the batch script.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from electra_dist.launch.local import STOPPED, USER_MISTAKE, run_processes

GRACE_SECONDS = 10.0
KILL_SECONDS = 15.0
"""As `launch.local.run_ranks` has them."""


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
                "RANK": str(self.number * self.num_ranks + local_rank),
                "WORLD_SIZE": str(self.num_nodes * self.num_ranks),
                "LOCAL_RANK": str(local_rank),
                "LOCAL_WORLD_SIZE": str(self.num_ranks),
                "MASTER_ADDR": self.master_addr,
                "MASTER_PORT": str(self.master_port),
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
