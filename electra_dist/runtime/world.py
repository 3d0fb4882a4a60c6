"""Who this process is among the ranks of a run, read from what its launcher put in the environment.

    1  RANK ...                  torchrun, deepspeed, --nproc: said of this very process
    2  OMPI_COMM_WORLD_RANK ...  mpirun: inside a Slurm job SLURM_PROCID is another process's
    3  SLURM_PROCID ...          srun: only in a step, see `_from_slurm`
    4  none of these             one process

No torch here: the order and the arithmetic are tested on plain dictionaries.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from electra_dist.config.slurm_names import expand_hostlist, expand_tasks_per_node
from electra_dist.errors import UserError

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 29500

LAUNCHER_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NPROCS"),
    *("SLURM_TASKS_PER_NODE", "SLURM_TASK_PID", "SLURM_GTIDS"),
)
"""Names by which a launcher tells a process its rank. SLURM_JOB_ID is not among them: it says where
we are, not who we are, and the time limit is looked up by it."""

LAUNCHER_PREFIXES = ("OMPI_", "PMIX_", "PMI_", "SLURM_STEP", "TORCHELASTIC_")
"""Families of such names, too many and too variable to list."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the `world_size` processes of a run."""

    rank: int
    """Number of this process, 0 <= rank < world_size."""
    world_size: int
    local_rank: int
    """Number of this process among those of its host, 0 <= local_rank < local_world_size."""
    local_world_size: int
    master_addr: str
    """Host name or address of rank 0."""
    master_port: int
    launcher: str
    """Who started the ranks: torchrun, environment (deepspeed, --nproc), openmpi, slurm, single."""
    restart_count: int = 0
    """How often torchrun restarted its ranks; its key-value store outlives them, keys must not."""

    def __post_init__(self) -> None:
        """Refuse ranks that can't be.

        Raises:
            UserError: a rank is negative or not under its size, or the port is no port.
        """
        for name, rank, size in (
            ("rank", self.rank, self.world_size),
            ("local rank", self.local_rank, self.local_world_size),
        ):
            if not 0 <= rank < size:
                raise UserError(
                    f"The {self.launcher} variables say {name} {rank} of {size}, but a {name} is "
                    f"from 0 to its count - 1: start the ranks with one launcher and unset the "
                    f"variables of others (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE)."
                )
        if self.local_world_size > self.world_size:
            raise UserError(
                f"The {self.launcher} variables say {self.local_world_size} ranks on this host but "
                f"only {self.world_size} in all: unset the ones that do not belong to this run."
            )
        if not 0 <= self.master_port < 65536:
            raise UserError(
                f"MASTER_PORT is {self.master_port}, but a port is from 1 to 65535: change it."
            )

    @property
    def is_leader(self) -> bool:
        """Rank 0 writes what exists once: metrics, events, manifests, exit.json."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "World":
        """The world that `environ` (usually os.environ) describes; one process if it says nothing.

        Raises:
            UserError: variables are missing, are not numbers or contradict each other.
        """
        if environ.get("RANK"):
            return _from_torchrun(environ)
        if environ.get("OMPI_COMM_WORLD_RANK"):
            return _from_open_mpi(environ)
        if environ.get("SLURM_STEP_ID") and environ.get("SLURM_PROCID"):
            return _from_slurm(environ)
        return cls(
            rank=0,
            world_size=1,
            local_rank=0,
            local_world_size=1,
            master_addr=LOOPBACK,
            master_port=0,
            launcher="single",
        )

    def as_environment(self) -> dict[str, str]:
        """The torchrun names for this world: libraries such as DeepSpeed read nothing else."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port or DEFAULT_PORT),
        }


def without_launcher_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without anything that names a rank, for children that get new ranks."""
    return {
        name: value
        for name, value in environ.items()
        if name not in LAUNCHER_VARIABLES and not name.startswith(LAUNCHER_PREFIXES)
    }


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    if not value:
        raise UserError(
            f"{name} is not set although other variables of its launcher are: "
            f"start every rank with the same launcher, or export {name}."
        )
    if not value.isascii() or not value.isdigit():
        raise UserError(f"{name} is {value!r}, but it must be a whole number: correct or unset it.")
    return int(value)


def _from_torchrun(environ: Mapping[str, str]) -> World:
    world_size = _number(environ, "WORLD_SIZE")
    address = environ.get("MASTER_ADDR", "")
    if not address and world_size == 1:
        address = LOOPBACK
    if not address:
        raise UserError(
            f"RANK is set and WORLD_SIZE is {world_size} but MASTER_ADDR is not set: "
            "export MASTER_ADDR with the host name of rank 0 (127.0.0.1 on one machine)."
        )
    # torchrun says LOCAL_WORLD_SIZE, deepspeed LOCAL_SIZE.
    for local_size_name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        if environ.get(local_size_name):
            local_world_size = _number(environ, local_size_name)
            break
    else:
        if world_size > 1 and address not in (LOOPBACK, "localhost"):
            raise UserError(
                f"RANK is set and MASTER_ADDR is {address!r} but LOCAL_WORLD_SIZE is not set: "
                "export LOCAL_WORLD_SIZE with the number of ranks on each host."
            )
        local_world_size = world_size
    uses_agent_store = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restart_count = environ.get("TORCHELASTIC_RESTART_COUNT", "0") if uses_agent_store else "0"
    return World(
        rank=_number(environ, "RANK"),
        world_size=world_size,
        local_rank=0 if world_size == 1 else _number(environ, "LOCAL_RANK"),
        local_world_size=local_world_size,
        master_addr=address,
        master_port=_port(environ, DEFAULT_PORT),
        launcher="torchrun" if uses_agent_store else "environment",
        restart_count=int(restart_count),
    )


def _from_open_mpi(environ: Mapping[str, str]) -> World:
    world_size = _number(environ, "OMPI_COMM_WORLD_SIZE")
    local_world_size = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
    address = environ.get("MASTER_ADDR", "")
    if not address and local_world_size != world_size:
        raise UserError(
            f"mpirun started {world_size} ranks, {local_world_size} of them on this host, but "
            "MASTER_ADDR is not set and MPI does not tell where rank 0 is: "
            "add -x MASTER_ADDR=<host name of rank 0> to mpirun."
        )
    job = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid", "")
    return World(
        rank=_number(environ, "OMPI_COMM_WORLD_RANK"),
        world_size=world_size,
        local_rank=_number(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
        local_world_size=local_world_size,
        master_addr=address or LOOPBACK,
        master_port=_port(environ, derived_port(job) if job else DEFAULT_PORT),
        launcher="openmpi",
    )


def _from_slurm(environ: Mapping[str, str]) -> World:
    """The world of an srun step.

    A batch shell has SLURM_PROCID=0 and SLURM_NTASKS=4 and is no rank, which is why the caller asks
    for SLURM_STEP_ID. An interactive step (salloc) has a step id, the job's SLURM_NTASKS and one
    task: SLURM_STEP_NUM_TASKS tells the truth there.
    """
    has_step_tasks = bool(environ.get("SLURM_STEP_NUM_TASKS"))
    world_size = _number(environ, "SLURM_STEP_NUM_TASKS" if has_step_tasks else "SLURM_NTASKS")
    local_world_size = 1 if world_size == 1 else _slurm_local_size(environ)
    hosts = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    address = environ.get("MASTER_ADDR", "")
    if not address and local_world_size == world_size:
        address = LOOPBACK  # Needs no name service, which virtual nodes and containers may lack.
    if not address and not hosts:
        raise UserError(
            "This is a Slurm step of several hosts but neither SLURM_STEP_NODELIST nor "
            "SLURM_JOB_NODELIST is set: export MASTER_ADDR with the host name of rank 0."
        )
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return World(
        rank=_number(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=0 if world_size == 1 else _number(environ, "SLURM_LOCALID"),
        local_world_size=local_world_size,
        master_addr=address or expand_hostlist(hosts)[0],
        master_port=_port(environ, derived_port(".".join(environ.get(n, "") for n in names))),
        launcher="slurm",
    )


def _slurm_local_size(environ: Mapping[str, str]) -> int:
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        if environ.get(name):
            counts = expand_tasks_per_node(environ[name], name)
            break
    else:
        raise UserError(
            "SLURM_STEP_ID is set but SLURM_STEP_TASKS_PER_NODE is not: start the ranks by srun."
        )
    node = 0 if len(counts) == 1 else _number(environ, "SLURM_NODEID")
    if node >= len(counts):
        raise UserError(
            f"SLURM_NODEID is {node} but {name} is {environ[name]!r}, which has {len(counts)} "
            "nodes: unset the variables of an outer step, or start the ranks by srun."
        )
    return counts[node]


def _port(environ: Mapping[str, str], default: int) -> int:
    return _number(environ, "MASTER_PORT") if environ.get("MASTER_PORT") else default


def derived_port(job: str) -> int:
    """A port that every rank of `job` computes alike, in 15000-29999.

    Below 32768, where Linux starts to hand out ports by itself, and another one for other jobs of
    the same host (two of them meet with a chance of 1 in 15,000).
    """
    return 15_000 + zlib.crc32(job.encode()) % 15_000
