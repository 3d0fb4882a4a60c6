"""What this machine can run: the one list that the tests and `make test` both ask."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Capability:
    """Something of the machine that some tests need."""

    name: str
    """The word in `needs_<name>` and in REQUIRE."""
    what: str
    """What is missing, in words, where it is missing."""
    remedy: str
    """The one command that would enable it."""
    is_there: Callable[[], bool]
    """True where the tests that need it can run."""


def _on_path(*programs: str) -> bool:
    """Whether every program is found; also in sbin, where servers lie off a user's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return all(shutil.which(program, path=path) for program in programs)


@cache
def _gpu_answers() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    return subprocess.run([program, "-L"], capture_output=True, check=False).returncode == 0


def _gives_huge_pages() -> bool:
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return mode.exists() and "[never]" not in mode.read_text()


@cache
def _may_make_hosts() -> bool:
    """Whether namespaces are allowed here: root of a container may lack that right."""
    spaces = ["--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc"]
    done = subprocess.run(["unshare", *spaces, "true"], capture_output=True, check=False)
    return done.returncode == 0


CAPABILITIES: dict[str, Capability] = {
    capability.name: capability
    for capability in (
        Capability(
            name="mpi",
            what="no MPI (mpirun and mpi4py)",
            remedy="apt-get install -y --no-install-recommends openmpi-bin libopenmpi-dev",
            is_there=lambda: _on_path("mpirun") and find_spec("mpi4py") is not None,
        ),
        Capability(
            name="slurm",
            what="no Slurm (slurmctld, slurmd, munged, ip), or not root, who may run virtual nodes",
            remedy="apt-get install -y --no-install-recommends slurm-wlm slurm-wlm-basic-plugins "
            "slurmctld slurmd slurm-client munge iproute2",
            is_there=lambda: (
                os.geteuid() == 0
                and _on_path("slurmctld", "slurmd", "munged", "sbatch", "srun", "ip", "nsenter")
            ),
        ),
        Capability(
            name="ssh",
            what="no ssh hosts (sshd, ssh, pdsh, ip, unshare), or no right to make them (root's)",
            remedy="apt-get install -y --no-install-recommends openssh-server openssh-client pdsh "
            "iproute2 procps util-linux",
            is_there=lambda: (
                _on_path("sshd", "ssh", "ssh-keygen", "pdsh", "pkill", "ip", "nsenter", "unshare")
                and _may_make_hosts()
            ),
        ),
        Capability(
            name="huge_pages",
            what="no huge pages for those who ask (/sys/kernel/mm/transparent_hugepage/enabled)",
            remedy="echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
            is_there=_gives_huge_pages,
        ),
        Capability(
            name="gpu",
            what="no NVIDIA device (nvidia-smi)",
            remedy="run on a machine with an NVIDIA driver",
            is_there=_gpu_answers,
        ),
    )
}


def required() -> frozenset[str]:
    """The names in REQUIRE (comma-separated): where one is missing, the tests that need it fail.

    Raises:
        ValueError: a name that is no capability.
    """
    names = frozenset(filter(None, os.environ.get("REQUIRE", "").replace(" ", "").split(",")))
    unknown = sorted(names - CAPABILITIES.keys())
    if unknown:
        raise ValueError(f"REQUIRE names {unknown[0]!r}; known are: {', '.join(CAPABILITIES)}")
    return names
