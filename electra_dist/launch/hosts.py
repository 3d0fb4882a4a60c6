"""Ranks on the hosts of a hostfile: the command of each launcher, as a pure function.

    deepspeed   one command; the runner reaches the hosts by pdsh and ssh, or another program
    mpirun      one command; it reaches the hosts by ssh
    torchrun    one command a host, each through ssh

The scripts of launchers/ build the same commands. Words of a user go to a program as they are;
where a shell on the other side reads them, they are quoted for it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from electra_dist.launch.hostfile import Host

PDSH = "pdsh"
MODULE_RUNNERS = (PDSH, "openmpi", "impi")
SCRIPT_RUNNERS = ("mpich", "slurm")
"""They lose `--module`: they get a file to run (deepspeed 0.19.8, launcher/multinode_runner.py)."""
RUNNERS = (*MODULE_RUNNERS, *SCRIPT_RUNNERS)

SSH = ("ssh", "-n", "-o", "BatchMode=yes")
ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
"""A host that is off or cut off ends its ssh after a minute; without, nothing ever does."""

OPEN_MPI = ("--bind-to", "none", "--mca", "odls_base_sigkill_timeout", "5")
"""Unbound: else each rank and its threads get one core. Twice 5 s, in place of 1 s, from the first
rank that has left (with 75, for example) to SIGKILL for the others, of which rank 0 has to write
why it ended. Longer would hold up the end, and the ranks' output with it."""

TORCHRUN_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""That it hands on; of itself it would die of SIGUSR1."""

SHUTDOWN_SECONDS = 300
"""Between torchrun's signal and its SIGKILL; its own default is 30 s."""


@dataclass(frozen=True, kw_only=True)
class HostsJob:
    """What is to be run, and where."""

    hosts: tuple[Host, ...]
    hostfile: Path
    words: tuple[str, ...]
    """Of `electra-dist`: pretrain, the config, --out RUN, overrides."""
    python: str
    """The interpreter on all hosts; absolute, because ssh does not take our PATH along."""
    master_addr: str | None
    """Of rank 0's host; None: DeepSpeed asks that host for it."""
    master_port: int
    folder: Path
    """Working directory on all hosts."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the ranks, beside what a login on their host gives; DeepSpeed reads its own file."""

    @property
    def num_ranks(self) -> int:
        """In all."""
        return sum(host.slots for host in self.hosts)


def deepspeed_command(job: HostsJob, runner: str, runner_args: str) -> list[str]:
    """The deepspeed launcher's; for the other runners than pdsh rank 0's address must be known."""
    flags = ["--no_local_rank", "--master_port", str(job.master_port)]
    # --force_multi: with one host in the file the launcher would start its ranks here.
    flags += ["--hostfile", str(job.hostfile), "--force_multi", "--launcher", runner]
    flags += ["--master_addr", job.master_addr] if job.master_addr else []
    flags += ["--no_ssh_check"] if runner == "slurm" else []
    if runner == "openmpi":  # it hands on neither
        known = [*OPEN_MPI, *_rank_0(job)]
        runner_args = f"{shlex.join(known)} {runner_args}".strip()
    # In one word with "=": an argument that begins with a dash.
    flags += [f"--launcher_args={runner_args}"] if runner_args else []
    if runner in MODULE_RUNNERS:
        program = ["--module", "electra_dist"]
    else:
        program = [str(Path(__file__).parents[1] / "__main__.py")]
    words = [pdsh_word(word) for word in job.words] if runner == PDSH else list(job.words)
    return ["deepspeed", *flags, *program, *words]


def pdsh_word(word: str) -> str:
    """Quote `word` for a shell that DeepSpeed's pdsh runner hands it to.

    The runner joins all words; one with a blank it puts in double quotes, and escapes only double
    quotes in it. Then pdsh replaces %h, %u and %n.
    """
    word = word.replace("%", "%%")
    if " " in word:
        return re.sub(r"([\\$`])", r"\\\1", word)
    return shlex.quote(word)


def mpirun_command(job: HostsJob, mpirun_args: str = "") -> list[str]:
    """Open MPI's."""
    flags = [*shlex.split(mpirun_args), "-np", str(job.num_ranks), *OPEN_MPI]
    flags += ["--host", ",".join(f"{host.name}:{host.slots}" for host in job.hosts)]
    flags += _rank_0(job)
    for name, value in job.variables.items():
        # By name alone mpirun takes the value from its own environment, where no list of processes
        # shows it. What it needs to find programs here stays its own.
        flags += ["-x", f"{name}={value}" if name.endswith("PATH") else name]
    return ["mpirun", *flags, job.python, "-m", "electra_dist", *job.words]


def _rank_0(job: HostsJob) -> list[str]:
    """MPI does not tell ranks where rank 0 is."""
    return ["-x", f"MASTER_ADDR={job.master_addr}", "-x", f"MASTER_PORT={job.master_port}"]


def torchrun_commands(job: HostsJob) -> list[list[str]]:
    """One a host, by node rank: ssh, and what its shell there is to exec."""
    commands = []
    for node, host in enumerate(job.hosts):
        torchrun = [
            *(job.python, "-m", "torch.distributed.run"),
            *("--nnodes", str(len(job.hosts)), "--node-rank", str(node)),
            *("--nproc-per-node", str(host.slots)),
            *("--master-addr", str(job.master_addr), "--master-port", str(job.master_port)),
            *("--max-restarts", "0", "--signals-to-handle", TORCHRUN_SIGNALS),
            *("--shutdown-timeout", str(SHUTDOWN_SECONDS)),
            *("-m", "electra_dist", *job.words),
        ]
        variables = [f"{name}={value}" for name, value in job.variables.items()]
        there = (
            f"cd {shlex.quote(str(job.folder))} && exec env {shlex.join([*variables, *torchrun])}"
        )
        commands.append([*SSH, *ALIVE, host.name, there])
    return commands


def torchrun_ends(job: HostsJob) -> list[list[str]]:
    """To end what `torchrun_commands` has started: ssh hands no signal on."""
    # [t]: the shell that gets this line, and has it in its own command line, is not meant.
    known = f"--master-addr {job.master_addr} --master-port {job.master_port}"
    line = shlex.join(["pkill", "-TERM", "-f", "--", f"[t]orch.distributed.run .*{known}"])
    return [[*SSH, *ALIVE, host.name, line] for host in job.hosts]
