"""Is this node fit to train? One check after the other, each with what it found and what to do.

    electra-dist doctor                                      on this machine
    srun --ntasks-per-node=1 electra-dist doctor --shared RUN --verdict     a line for each node

Nothing here imports torch: what needs it (devices, the all-reduce) runs in a child process, so that
a broken torch or driver is a failed check and not a crash of the doctor, and a hang has a deadline.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from electra_dist.launch.local import free_port

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "datasets", "safetensors", "numpy")
MIN_SHM_BYTES = 128 << 20
"""gloo and NCCL keep segments in /dev/shm. Docker's default is 64 MB in all, which is too small."""
MIN_FREE_BYTES = 10 << 30
"""Two checkpoints of `base` and their temporaries take 5 GB."""
MAX_CLOCK_SKEW_SECONDS = 5.0
"""Ages of heartbeats and attempts are compared across nodes."""
FSYNC_BYTES = 16 << 20
SLOWEST_FSYNC_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check has found."""

    name: str
    is_good: bool
    words: str
    """What was found; behind a semicolon, if it is bad, what to do."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What is examined."""

    environ: Mapping[str, str]
    rank_environ: Mapping[str, str]
    """The same without anything that names a rank, for children that get ranks of their own."""
    shared: Path | None
    """A folder that all nodes of the run share, or None."""
    num_ranks: int
    """Ranks of the all-reduce on this node."""
    seconds: float
    """Deadline of each child process."""


class _Bad(Exception):
    """A check's finding that ends it."""


def examine(patient: Patient) -> Iterator[Finding]:
    """All checks in turn, quick ones first; an unforeseen error is a finding too."""
    for name, check in CHECKS.items():
        try:
            words = check(patient)
        except _Bad as bad:
            yield Finding(name=name, is_good=False, words=str(bad))
        except Exception as error:  # the doctor must outlive every patient
            yield Finding(name=name, is_good=False, words=f"{type(error).__name__}: {error}")
        else:
            if words is not None:
                yield Finding(name=name, is_good=True, words=words)


def verdict(findings: list[Finding]) -> str:
    """One line for this node."""
    bad = [f"{finding.name}: {finding.words}" for finding in findings if not finding.is_good]
    node = node_name()
    return f"BAD node {node}: {' | '.join(bad)}" if bad else f"OK node {node}"


def node_name(environ: Mapping[str, str] = os.environ) -> str:
    """As Slurm calls it, whose names need not be those of hosts; outside of Slurm the host's."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def as_json(findings: list[Finding]) -> str:
    """One JSON document."""
    value = {
        "node": node_name(),
        "is_fit": all(finding.is_good for finding in findings),
        "checks": [asdict(finding) for finding in findings],
    }
    return json.dumps(value, indent=2)


def _versions(_: Patient) -> str:
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        raise _Bad(f"{', '.join(missing)} not installed; run `make setup`, or use the image")
    return ", ".join([f"Python {sys.version.split()[0]}", *found])


def _devices(patient: Patient) -> str:
    smi = shutil.which("nvidia-smi")
    if smi is not None:
        query = [smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        answer = _child(query, patient, "the driver does not answer; reboot the node")
        gpus = answer.splitlines()
    else:
        gpus = []
    program = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"
    count, cuda = _child(
        [sys.executable, "-c", program], patient, "torch can't be loaded; install it anew"
    ).split()
    if gpus and int(count) == 0 and "CUDA_VISIBLE_DEVICES" not in patient.environ:
        raise _Bad(
            f"{len(gpus)} GPUs ({gpus[0]}), but torch (CUDA {cuda}) sees none; install a torch "
            "that fits the driver"
        )
    if int(count) == 0:
        return "no GPU, CPU only"
    return f"{count} GPUs: {gpus[0] if gpus else 'no nvidia-smi to name them'}, CUDA {cuda}"


def _names(patient: Patient) -> str:
    name = socket.gethostname()
    if patient.environ.get("MASTER_ADDR") and patient.environ.get("GLOO_SOCKET_IFNAME"):
        return f"{name} is not looked up: MASTER_ADDR and GLOO_SOCKET_IFNAME say where ranks meet"
    is_alone = int(patient.environ.get("SLURM_JOB_NUM_NODES", 1)) == 1
    try:
        address = socket.gethostbyname(name)
    except OSError:
        if is_alone:  # as in many containers: ranks of one node meet at 127.0.0.1
            return f"{name} has no address: enough for one node only"
        raise _Bad(f"the own name {name} has no address; add it to DNS or /etc/hosts") from None
    if address.startswith("127.") and not is_alone:
        raise _Bad(f"{name} is {address}, which other nodes can't reach; mend /etc/hosts")
    try:
        back = socket.gethostbyaddr(address)[0]
    except OSError:
        return f"{name} is {address}, which has no name of its own"
    if back.split(".")[0] not in (name.split(".")[0], "localhost"):
        raise _Bad(
            f"{name} is {address}, but {address} is {back}; mend /etc/hosts, or set MASTER_ADDR"
        )
    return f"{name} is {address} and back"


def _port(patient: Patient) -> str:
    words = patient.environ.get("MASTER_PORT", "0")
    if not (words.isdecimal() and int(words) < 65536):
        raise _Bad(f"MASTER_PORT is {words!r}; it must be a number from 1 to 65535")
    port = int(words)
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
            found = listener.getsockname()[1]
    except OSError as error:
        raise _Bad(f"port {port} can't be opened ({error.strerror}); set MASTER_PORT") from None
    return f"{found} can be opened"


def _compiler(patient: Patient) -> str:
    compiler = patient.environ.get("CXX", "c++")
    if shutil.which(compiler, path=patient.environ.get("PATH")) is None:
        return f"no {compiler}: fine, unless engine.deepspeed_config asks for what is compiled"
    return f"{compiler} is there"


def _shm(_: Patient) -> str:
    free = shutil.disk_usage("/dev/shm").free
    if free < MIN_SHM_BYTES:
        raise _Bad(f"/dev/shm has {free >> 20} MB free, needs {MIN_SHM_BYTES >> 20}; enlarge it")
    return f"{free >> 20:,} MB free in /dev/shm"


def _scratch(_: Patient) -> str:
    folder = Path(tempfile.gettempdir())
    return f"{folder}: {_write_speed(folder)}"


def _shared(patient: Patient) -> str | None:
    if patient.shared is None:
        return None
    patient.shared.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(patient.shared).free
    if free < MIN_FREE_BYTES:
        raise _Bad(f"{patient.shared} has {free >> 30} GB free; make room for checkpoints")
    return f"{patient.shared}: {free >> 30:,} GB free, {_write_speed(patient.shared)}"


def _visibility(patient: Patient) -> str | None:
    """As a job step of several nodes: each leaves a file in the shared folder and looks for all."""
    step = patient.environ.get("SLURM_STEP_ID")
    num_nodes = int(patient.environ.get("SLURM_STEP_NUM_NODES", 1))
    if patient.shared is None or step is None or num_nodes == 1:
        return None
    job = patient.environ.get("SLURM_JOB_ID")
    folder = (
        patient.shared / "doctor" / f"{job}.{step}.{patient.environ.get('SLURM_RESTART_COUNT', 0)}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / node_name(patient.environ)).touch()
    deadline = time.monotonic() + patient.seconds
    while len(seen := sorted(path.name for path in folder.iterdir())) < num_nodes:
        if time.monotonic() > deadline:
            raise _Bad(
                f"sees the files of {len(seen)} of {num_nodes} nodes in {folder} "
                f"({', '.join(seen)}); is it one folder on all nodes?"
            )
        time.sleep(0.2)
    return f"all {num_nodes} nodes see {patient.shared}"


def _clock(patient: Patient) -> str:
    """This node's clock against the one that stamps files of the shared folder."""
    folder = patient.shared or Path(tempfile.gettempdir())
    with tempfile.NamedTemporaryFile(dir=folder, prefix="doctor-") as file:
        before = time.time()
        file.write(b"x")
        file.flush()
        stamp = os.fstat(file.fileno()).st_mtime
        after = time.time()
    skew = max(before - stamp, stamp - after, 0.0)
    if skew > MAX_CLOCK_SKEW_SECONDS:
        raise _Bad(f"{skew:.0f} s off the clock that stamps {folder}; start chrony or ntpd")
    return f"within {max(skew, 0.01):.2f} s of the files in {folder}"


def _all_reduce(patient: Patient) -> str:
    """`num_ranks` ranks of the self-test on this node alone."""
    environ = {**patient.rank_environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environ["ELECTRA_SELFTEST_SECONDS"] = str(patient.seconds)
    size = str(patient.num_ranks)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "electra_dist.runtime.selftest"],
            env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            | {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(patient.num_ranks)
    ]
    try:
        # The self-test has the same deadline; it names who is missing, so it may end first.
        texts = [rank.communicate(timeout=patient.seconds + 30) for rank in ranks]
    except subprocess.TimeoutExpired:
        raise _Bad(f"no answer in {patient.seconds + 30:.0f} s; a device or port hangs") from None
    finally:
        for rank in ranks:
            rank.kill()
    if any(rank.returncode for rank in ranks):
        last = next((err.strip().splitlines()[-1] for _, err in texts if err.strip()), "no word")
        raise _Bad(f"{last}; see `python -m electra_dist.runtime.selftest`")
    return texts[0][0].strip()


def _write_speed(folder: Path) -> str:
    data = os.urandom(1 << 20)
    started = time.monotonic()
    with tempfile.NamedTemporaryFile(dir=folder, prefix="doctor-") as file:
        for _ in range(FSYNC_BYTES >> 20):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.monotonic() - started
    if seconds > SLOWEST_FSYNC_SECONDS:
        raise _Bad(f"{FSYNC_BYTES >> 20} MB to {folder} took {seconds:.0f} s; use another disk")
    return f"{FSYNC_BYTES / seconds / 1e6:,.0f} MB/s with fsync"


def _child(command: list[str], patient: Patient, remedy: str) -> str:
    try:
        done = subprocess.run(
            command,
            env=dict(patient.environ),
            capture_output=True,
            text=True,
            timeout=patient.seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _Bad(f"{Path(command[0]).name} hangs for {patient.seconds:.0f} s; {remedy}") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise _Bad(f"{last}; {remedy}")
    return done.stdout.strip()


CHECKS: dict[str, Callable[[Patient], str | None]] = {
    "versions": _versions,
    "names": _names,
    "port": _port,
    "shm": _shm,
    "scratch": _scratch,
    "shared folder": _shared,
    "clock": _clock,
    "visibility": _visibility,
    "compiler": _compiler,
    "devices": _devices,
    "all-reduce": _all_reduce,
}
"""In this order; each says what it found, or raises what is bad; None where it does not apply."""
