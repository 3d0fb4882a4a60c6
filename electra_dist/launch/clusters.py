"""The facts of a site, in one TOML file of slurm/clusters: read strictly, checked where it is born.

What Slurm reads itself (account, partition ...) becomes `#SBATCH` lines, whose words may hold no
blank and no quote; what the batch shell reads is quoted (`launch.slurm`).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import dacite

from electra_dist.config.checks import require
from electra_dist.errors import UserError

FOLDER = Path(__file__).parents[2] / "slurm" / "clusters"
"""Where a NAME is looked up; of an installed package: the current folder's slurm/clusters."""

SBATCH_WORD = re.compile(r"[\w.,:;@%+=/|&*!()\[\]<>~^-]+", re.ASCII)
"""What an #SBATCH line takes without quotes: node features are such as [rack1|rack2*2]."""

TIME = re.compile(r"(?:\d+-)?\d+(?::[0-5]?\d){0,2}", re.ASCII)
"""Slurm's own forms: minutes, H:MM:SS, D-HH:MM:SS ..."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Container:
    """Ranks run in an image; the batch script itself runs on the host, where srun is."""

    runtime: Literal["apptainer", "pyxis"]
    """apptainer: `apptainer exec --nv` as each task; pyxis: srun's own --container-image."""
    image: str
    """A .sif or .sqsh file, or what the runtime takes."""
    mounts: tuple[str, ...] = ()
    """Folders seen inside, HOST or HOST:INSIDE; the run folder is always among them."""
    python: str = "python"
    """The interpreter inside that has electra_dist."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One site."""

    description: str = ""
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    """Nodes to keep away from, in Slurm's form n[1-3],n7."""
    sbatch_options: tuple[str, ...] = ()
    """Whatever else the site wants, a word each: "--switches=1"."""
    gpus_per_node: int = 0
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How GPUs are asked for: --gpus-per-node=4 or --gres=gpu:4."""
    gpu_type: str | None = None
    """a100 in --gres=gpu:a100:4."""
    tasks_per_node: int | None = None
    """Ranks of a node; left out: its GPUs, or 1."""
    cpus_per_task: int | None = None
    memory: str | None = None
    """Of a node, such as 480G; "0" is all of it."""
    exclusive: bool = False
    time: str = "24:00:00"
    """Limit of one job, in Slurm's form."""
    lead_seconds: int = 180
    """How long before the limit USR1 comes: a step, two saves and Slurm's 30 s of slack."""
    requeue: bool = True
    """Whether the site lets jobs be requeued; where not, use --chain."""
    modules: tuple[str, ...] = ()
    """For `module load`, in this order, after `module purge`."""
    venv: str | None = None
    """A virtual environment to activate on the nodes."""
    interface: str | None = None
    """Network interface of the ranks' traffic (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME): ib0."""
    master_addr_suffix: str | None = None
    """Behind a node's name this makes its name in the fast network: i, or -ib0."""
    scratch: str | None = None
    """A folder on the node for compiled kernels; $NAME in it is a variable of the job."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of every rank, as they stand."""
    container: Container | None = None

    def __post_init__(self) -> None:
        for name in ("account", "partition", "qos", "constraint", "reservation", "exclude"):
            _require_word(name, getattr(self, name))
        for name in ("gpu_type", "memory"):
            _require_word(name, getattr(self, name))
        for option in self.sbatch_options:
            _require_word("sbatch_options", option)
            require(
                option.startswith("-"),
                "sbatch_options",
                option,
                "is no option",
                'write "--name=value", a word each',
            )
        require_time("time", self.time)
        for name in ("gpus_per_node", "lead_seconds"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "is below 0", "raise it")
        for name in ("tasks_per_node", "cpus_per_task"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "must be at least 1", "raise it")
        for name in self.environment:
            require(
                NAME.fullmatch(name) is not None,
                "environment",
                name,
                "is no name of a variable",
                "use letters, digits and _",
            )


def require_time(name: str, value: str) -> None:
    """Refuse what Slurm would not read as a time limit."""
    require(
        TIME.fullmatch(value) is not None,
        name,
        value,
        "is no time limit of Slurm's",
        "write H:MM:SS or D-HH:MM:SS",
    )


def load_cluster(name_or_path: str) -> Cluster:
    """The cluster of a TOML file, or of NAME.toml in slurm/clusters.

    Raises:
        UserError: there is no such file, or it holds what it may not.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        folders = [folder for folder in (Path("slurm/clusters"), FOLDER) if folder.is_dir()]
        names = {p.stem: p for folder in reversed(folders) for p in folder.glob("*.toml")}
        if name_or_path not in names:
            known = ", ".join(sorted(names)) or "none here"
            raise UserError(
                f"--cluster {name_or_path} is unknown (known: {known}); "
                "give the path of a .toml file"
            )
        path = names[name_or_path]
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError:
        raise UserError(f"--cluster {path} does not exist; give the path of a .toml file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable TOML file: {error}") from None
    checked = _checked(Cluster, values, str(path), "")
    try:
        return dacite.from_dict(Cluster, checked, dacite.Config(strict=True, cast=[tuple]))
    except dacite.MissingValueError as error:
        raise UserError(f"{path}: {error.field_path} is missing; add it") from None
    except dacite.DaciteError as error:
        raise UserError(f"{path}: {error}; see slurm/README.md for the fields") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _require_word(name: str, value: str | None) -> None:
    require(
        value is None or SBATCH_WORD.fullmatch(value) is not None,
        name,
        value,
        "does not fit into an #SBATCH line",
        "use no blanks, quotes or other special characters",
    )


def _checked(cls: type, values: Mapping[str, Any], where: str, prefix: str) -> dict[str, Any]:
    """`values`, no key unknown, every list of a tuple field of strings a tuple."""
    known = get_type_hints(cls)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            names = ", ".join(each.name for each in fields(cls))
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {names}"
            raise UserError(f"{where}: unknown key {prefix}{key}; {hint}")
        checked[key] = value
        if key == "container" and isinstance(value, Mapping):
            checked[key] = _checked(Container, value, where, "container.")
        elif get_origin(known[key]) is tuple:
            is_list = isinstance(value, list) and all(isinstance(each, str) for each in value)
            require(is_list, f"{where}: {prefix}{key}", value, "is no list of texts", 'write ["a"]')
            checked[key] = tuple(value)
        elif get_origin(known[key]) is Literal and value not in get_args(known[key]):
            allowed = " or ".join(get_args(known[key]))
            raise UserError(f"{where}: {prefix}{key} = {value!r} is not allowed; write {allowed}")
        elif type(value) is bool and bool not in (known[key], *get_args(known[key])):
            raise UserError(
                f"{where}: {prefix}{key} = {value!r} is not allowed; it is no yes or no"
            )
    return checked
