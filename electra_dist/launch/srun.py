"""Ranks through srun, inside a Slurm allocation: the command, and which nodes are left.

The supervisor runs in the batch script, on the allocation's first node; each launch is one srun
step. Exit codes of srun mean little (a rank's 7 becomes 143): the run folder has the truth.
"""

import logging
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from electra_dist.config.slurm_commands import ask_slurm
from electra_dist.config.slurm_names import expand_hostlist, expand_tasks_per_node
from electra_dist.config.variables import LAUNCH, MISTAKE_FILE
from electra_dist.errors import UserError
from electra_dist.launch.local import USER_MISTAKE, Signals, run_processes
from electra_dist.launch.step_watch import RunFolderWatch, StepWatch

log = logging.getLogger(__name__)

GRACE_SECONDS = 20.0
"""How long ranks that have lost one of them may take to find out and leave by themselves."""

KILL_SECONDS = 60.0
"""How long srun may take to end after SIGTERM: it waits for Slurm's KillWait (30 s)."""

GONE = ("down", "fail", "failing", "error", "unknown", "perctrs", "powered_down", "powering_down")
"""States of nodes that can run no step; a state that ends in * is one of a node that is silent."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What the batch script was given."""

    num_nodes: int
    tasks_per_node: int | None
    """None where nodes differ."""
    num_tasks: int
    node_list: str
    """In Slurm's short form: n[1-4]."""
    cpus_per_task: str | None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Allocation":
        """Read a batch script's variables.

        Raises:
            UserError: this is no allocation, or it is a rank's environment.
        """
        if not environ.get("SLURM_JOB_ID"):
            raise UserError(
                "--launcher srun needs a Slurm allocation (SLURM_JOB_ID is not set): run it in a "
                "batch script or under salloc, or start ranks of this machine with --nproc N"
            )
        if "SLURM_STEP_ID" in environ and environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
            raise UserError(
                "--launcher srun is for the batch script, but srun has started this process as one "
                "of several tasks: leave --launcher out here, each task then is a rank"
            )
        tasks = environ.get("SLURM_TASKS_PER_NODE")
        counts = expand_tasks_per_node(tasks) if tasks else []
        num_nodes = int(environ.get("SLURM_JOB_NUM_NODES") or len(counts) or 1)
        per_node = counts[0] if counts and len(set(counts)) == 1 else None
        default = sum(counts) if counts else num_nodes
        return cls(
            num_nodes=num_nodes,
            tasks_per_node=per_node,
            num_tasks=int(environ.get("SLURM_NTASKS") or default),
            node_list=environ.get("SLURM_JOB_NODELIST", ""),
            cpus_per_task=environ.get("SLURM_CPUS_PER_TASK"),
        )


def srun_command(
    command: Sequence[str], allocation: Allocation, nodes: Sequence[str] | None, *, no_kill: bool
) -> list[str]:
    """The words that start `command` on every task.

    Args:
        command: program and arguments of a rank.
        allocation: see there.
        nodes: only on these; None: on all.
        no_kill: the allocation outlives its nodes, and so shall the step.
    """
    words = ["srun", "--kill-on-bad-exit=1"]  # without it srun waits for ever for the other ranks
    # The first SIGINT goes to the ranks, instead of srun's own "one more within 1 sec to abort".
    words += ["--disable-status", "--unbuffered"]
    words += ["--no-kill"] if no_kill else []
    # A step whose daemon was killed holds its CPUs and GPUs until the end of the job (22.05).
    words += ["--overlap"]
    # srun of Slurm 22.05 and later does not take it over from sbatch.
    words += [f"--cpus-per-task={allocation.cpus_per_task}"] if allocation.cpus_per_task else []
    if nodes is not None:
        assert allocation.tasks_per_node is not None
        words += [f"--nodes={len(nodes)}", f"--ntasks={len(nodes) * allocation.tasks_per_node}"]
        words += [f"--ntasks-per-node={allocation.tasks_per_node}"]
        words += [f"--nodelist={','.join(nodes)}"]
    else:
        words += [f"--ntasks={allocation.num_tasks}"]
    return [*words, *command]


def usable_nodes(answer: str) -> list[str]:
    """The nodes that can run a step, of the lines `name state` that sinfo has answered."""
    usable: list[str] = []
    for line in answer.splitlines():
        name, _, state = line.strip().partition(" ")
        base = re.match(r"[a-z_]+", state.strip().lower())
        is_gone = state.strip().endswith("*") or not base or base[0] in GONE
        if name and not is_gone and name not in usable:  # a node of two partitions has two lines
            usable.append(name)
    return usable


def ask_sinfo(node_list: str) -> str:
    """Lines `name state` of these nodes; empty if nobody answers, and then nothing is known."""
    answer = ask_slurm(["sinfo", "-h", "-N", "-n", node_list, "-o", "%N %T"])
    if answer.code != 0:
        log.warning("the states of nodes %s are not known (%s)", node_list, answer.words)
    return answer.printed


class SrunLauncher:
    """Starts the ranks of one allocation, again and again, on the nodes that are left.

    Args:
        environ: of the batch script; srun reads its SLURM_* variables.
        run_folder: RUN.
        no_kill: the job was submitted with --no-kill and may go on with fewer nodes.
        ranks_per_task: 1, or those that a launcher on each node starts.
        ask: what sinfo answers for a node list; for tests.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        run_folder: Path,
        *,
        no_kill: bool,
        ranks_per_task: int = 1,
        ask: Callable[[str], str] = ask_sinfo,
    ) -> None:
        self._environ = environ
        self._run_folder = run_folder
        self.allocation = Allocation.from_environment(environ)
        self._no_kill = no_kill and self.allocation.tasks_per_node is not None
        self._ranks_per_task = ranks_per_task
        self._ask = ask
        self._left_out: tuple[str, ...] = ()
        self._nodes: list[str] | None = None
        """Those of the next step; None: all."""
        self.world_size = self.allocation.num_tasks * ranks_per_task

    def leave_out(self, nodes: Sequence[str]) -> None:
        """Start no ranks on these nodes, which are not fit; the others must be of one size."""
        assert self.allocation.tasks_per_node is not None
        self._left_out = tuple(nodes)
        self.look()

    def look(self) -> int:
        """How many ranks can be started now; the next launch starts so many."""
        nodes = usable_nodes(self._ask(self.allocation.node_list)) if self._no_kill else []
        if self._left_out:
            nodes = nodes or expand_hostlist(self.allocation.node_list)
            nodes = [node for node in nodes if node not in self._left_out]
        if not nodes or len(nodes) >= self.allocation.num_nodes:
            self._nodes, num_tasks = None, self.allocation.num_tasks
        else:
            assert self.allocation.tasks_per_node is not None
            self._nodes, num_tasks = nodes, len(nodes) * self.allocation.tasks_per_node
        self.world_size = num_tasks * self._ranks_per_task
        return self.world_size

    def run(self, command: list[str], variables: Mapping[str, str], signals: Signals) -> int:
        """Run `command` as one step; returns srun's exit code, or 2 after a mistake of the user."""
        with tempfile.TemporaryDirectory(prefix="electra_dist_") as folder:
            # Rank 0 is on this node.
            mistake = Path(folder) / "mistake"
            code = self._run(command, {**variables, MISTAKE_FILE: str(mistake)}, signals)
            return USER_MISTAKE if mistake.exists() else code

    def _run(self, command: list[str], variables: Mapping[str, str], signals: Signals) -> int:
        step = srun_command(command, self.allocation, self._nodes, no_kill=self._no_kill)
        run_folder = RunFolderWatch(self._run_folder, variables[LAUNCH])
        watch = StepWatch(run_folder.verdict, self._has_lost_nodes if self._no_kill else None)
        try:
            (code,) = run_processes(
                step,
                [{**self._environ, **variables}],
                grace_seconds=GRACE_SECONDS,
                kill_seconds=KILL_SECONDS,
                signals=signals,
                is_lost=watch.is_over,
                program="srun",
            )
        finally:
            watch.close()
        return code

    def _has_lost_nodes(self) -> bool:
        answer = self._ask(self.allocation.node_list)
        expected = len(self._nodes) if self._nodes is not None else self.allocation.num_nodes
        usable = usable_nodes(answer)
        of_step = [n for n in usable if self._nodes is None or n in self._nodes]
        return bool(answer.strip()) and len(of_step) < expected
