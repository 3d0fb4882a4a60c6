"""A site as a TOML file: what its Slurm wants to be told, and what its nodes need."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from electra_dist.config.checks import require, require_positive
from electra_dist.config.slurm_names import slurm_minutes
from electra_dist.config.strict import strict_values
from electra_dist.errors import UserError

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FOLDERS_VARIABLE = "ELECTRA_DIST_CLUSTERS"
"""More folders with NAME.toml, separated by colons, looked through before slurm/clusters."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a job script of this site says; read by `submit slurm`."""

    account: str | None = None
    """--account."""
    partition: str | None = None
    """--partition."""
    qos: str | None = None
    """--qos."""
    constraint: str | None = None
    """--constraint, such as "a100&nvlink"."""
    reservation: str | None = None
    """--reservation."""
    time: str = "24:00:00"
    """--time; `submit --time` overrides it."""
    gpus_per_node: int = 0
    """GPUs to ask for on each node, and ranks: one task a GPU. 0: no GPU."""
    gpu_type: str | None = None
    """Of --gres=gpu:TYPE:N."""
    tasks_per_node: int | None = None
    """Ranks on a node. Left out: one for each GPU, or one."""
    tasks: Literal["per_gpu", "per_node"] = "per_gpu"
    """What Slurm starts: each rank, or on each node one launcher that starts its ranks."""
    cpus_per_task: int | None = None
    """Cores of a rank: --cpus-per-task, times the ranks of a launcher."""
    mem: str | None = None
    """--mem of a node; "0" is all of it."""
    exclusive: bool = False
    """--exclusive: nobody else's jobs on the nodes."""
    signal_lead_seconds: int = 300
    """USR1 so long before the time limit; Slurm may be up to 30 s late with it."""
    requeue: bool = True
    """False where the site forbids requeues: use `submit slurm --chain N`."""
    exclude_bad_nodes: bool = False
    """Let the doctor look at each node before the ranks start, and leave bad ones out."""
    sbatch: tuple[str, ...] = ()
    """More words for #SBATCH lines, such as "--licenses=scratch"."""
    modules: tuple[str, ...] = ()
    """For `module load`."""
    python: str | None = None
    """Interpreter that has electra_dist, on the nodes. Left out: the one that submits."""
    container: tuple[str, ...] = ()
    """Words in front of each rank's command, such as ["apptainer", "exec", "--nv", "e.sif"]."""
    network_interface: str | None = None
    """For NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME, such as "ib0"."""
    master_addr_suffix: str = ""
    """Behind the name of the first node, where another network has names of its own: "-ib"."""
    scratch: str | None = None
    """Node-local folder for what torch and triton compile; $USER and the like are expanded."""
    environment: dict[str, str] = field(default_factory=dict)
    """More variables for the job."""

    def __post_init__(self) -> None:
        require_positive(
            "cluster",
            tasks_per_node=self.tasks_per_node,
            cpus_per_task=self.cpus_per_task,
            signal_lead_seconds=self.signal_lead_seconds,
        )
        require(
            self.gpus_per_node >= 0,
            "cluster.gpus_per_node",
            self.gpus_per_node,
            "is a number of GPUs",
            "give 0 for none",
        )
        slurm_minutes(self.time, "cluster.time =")
        for name in self.environment:
            require(
                VARIABLE.fullmatch(name) is not None,
                "cluster.environment",
                name,
                "is no name of a variable",
                "use letters, digits and _",
            )
        for name, value in vars(self).items():
            words = value if isinstance(value, tuple) else (value,)
            require(
                not any(isinstance(word, str) and set(word) & set("\n\r\0") for word in words),
                f"cluster.{name}",
                value,
                "must be of one line",
                "take the line break out",
            )

    @property
    def num_ranks_per_node(self) -> int:
        """Ranks on a node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def num_ranks_per_task(self) -> int:
        """Ranks that a task of Slurm's starts."""
        return self.num_ranks_per_node if self.tasks == "per_node" else 1

    @property
    def num_tasks_per_node(self) -> int:
        """Tasks that Slurm starts on a node."""
        return self.num_ranks_per_node // self.num_ranks_per_task


def find_cluster(name_or_path: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The file of a cluster: a path, or NAME for NAME.toml in one of the known folders.

    Raises:
        UserError: there is none; the sentence says where was looked.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if path.is_file():
            return path
        raise UserError(f"--cluster {path}: there is no such file")
    given = [Path(folder) for folder in environ.get(FOLDERS_VARIABLE, "").split(":") if folder]
    folders = [*given, Path("slurm/clusters"), Path(__file__).parents[2] / "slurm" / "clusters"]
    for folder in folders:
        if (folder / f"{name_or_path}.toml").is_file():
            return folder / f"{name_or_path}.toml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.toml")})
    raise UserError(
        f"--cluster {name_or_path!r} is not known (there are: {', '.join(known) or 'none'}); give "
        f"the path of a .toml, or put its folder into {FOLDERS_VARIABLE}"
    )


def read_cluster(path: Path) -> ClusterConfig:
    """Read a cluster's file, strictly.

    Raises:
        UserError: no TOML, an unknown key, a wrong type or value.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as TOML ({error})") from None
    return ClusterConfig(**strict_values(ClusterConfig, values, str(path)))
