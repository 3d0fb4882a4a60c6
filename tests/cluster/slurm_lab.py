"""A real Slurm of four virtual nodes under one temporary folder: daemons, helpers, no trace left.

    munged (own socket and key) <── slurmctld ──> slurmd -N n1 .. n4, all on this host, free ports

Several labs stand side by side. Every process of a lab, of its jobs too, has SLURM_CONF=<folder>
in its environment: that is how the end of the lab finds what is still alive.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]

NODES = ("n1", "n2", "n3", "n4")
CPUS = 8
GPUS = 4
"""Of each node, both made up: nothing binds to them."""
SECONDS = 120.0
"""For what takes seconds on an idle machine: longer is a hang."""
ENDED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"),
    *("BOOT_FAIL", "DEADLINE"),
)

# Debian's Slurm 22.05. cred_expire: a requeued job waits that and 1 s (5 is the least that is
# taken, the default means 121 s). TmpFS: else PMIx of one virtual node meets that of another.
# CompleteWait, MessageTimeout ...: what makes minutes of a cluster into seconds here.
CONF = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
TmpFS={folder}/tmp.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=3
KillWait={kill_wait}
InactiveLimit=0
MinJobAge=600
BatchStartTimeout=10
CompleteWait=0
MessageTimeout=3
TCPTimeout=1
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
{nodes}
PartitionName=main Nodes=n[1-4] Default=YES MaxTime=INFINITE PriorityTier=10
PartitionName=low Nodes=n[1-4] MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n[1-4] MaxTime=INFINITE PriorityTier=20
"""


@dataclass
class SlurmLab:
    """A running Slurm; `slurm_lab` makes one."""

    folder: Path
    environ: dict[str, str]
    """For every program that speaks to this Slurm, and for what a job inherits."""
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, *words: str | Path, check: bool = True, seconds: float = SECONDS) -> str:
        """stdout of a Slurm command; its output is part of the error if it fails."""
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{words} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def submit(self, *words: str | Path, **variables: str) -> str:
        """The id of a new job: `sbatch --parsable` with these words."""
        lab = SlurmLab(folder=self.folder, environ={**self.environ, **variables})
        return lab.run("sbatch", "--parsable", *words).strip()

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says of it."""
        text = self.run("scontrol", "show", "job", "--oneliner", job_id)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def state(self, job_id: str) -> str:
        """RUNNING, PENDING, COMPLETED ..."""
        return self.job(job_id)["JobState"]

    def wait_for_state(self, job_id: str, *states: str, seconds: float = SECONDS) -> str:
        """Until the job is in one of these states; an end that is none of them is an error."""
        seen = ""

        def is_there() -> bool:
            nonlocal seen
            seen = self.state(job_id)
            assert seen in states or seen not in ENDED, f"job {job_id} is {seen}, not {states}"
            return seen in states

        wait_for(is_there, f"job {job_id} to be {'/'.join(states)}", seconds)
        return seen

    def wait_for_end(self, job_id: str, seconds: float = SECONDS) -> str:
        """The state in which it ends."""
        return self.wait_for_state(job_id, *ENDED, seconds=seconds)

    def restarts(self, job_id: str) -> int:
        """How often the job was requeued."""
        return int(self.job(job_id)["Restarts"])

    def step_daemons(self, node: str, job_id: str | None = None) -> list[int]:
        """Process ids of the slurmstepd of one node; each is the father of its tasks."""
        found = []
        for pid, words in self._processes():
            matched = re.match(r"slurmstepd: \[(\d+)", words)
            if matched and job_id in (None, matched[1]) and _node_of(pid) == node:
                found.append(pid)
        return found

    def kill_steps(self, node: str, job_id: str | None = None) -> None:
        """SIGKILL to the step daemons of a node and all below them: Slurm does not notice."""
        for pid in self.step_daemons(node, job_id):
            for each in [pid, *_descendants(pid)]:
                _kill(each)

    def kill_node(self, node: str) -> None:
        """As if its power were cut: no slurmd, no step, no task."""
        daemon = self.daemons.pop(f"slurmd.{node}")
        daemon.kill()
        daemon.wait()
        self.kill_steps(node)

    def start_node(self, node: str) -> None:
        """Start (again) the slurmd of a node."""
        self._start(f"slurmd.{node}", "slurmd", "-D", "-N", node)

    def start_controller(self) -> None:
        """Start slurmctld (again): running jobs go on."""
        self._start("slurmctld", "slurmctld", "-D")
        wait_for(self._answers, "slurmctld to answer")

    def stop_controller(self) -> None:
        """Kill slurmctld; its state is on disk."""
        self._end("slurmctld", signal.SIGKILL)

    def wait_until_idle(self, num_nodes: int = len(NODES)) -> None:
        """Until so many nodes can take a job."""
        wait_for(
            lambda: (
                len(self.run("sinfo", "-h", "-p", "main", "-N", "-t", "idle").split("\n")) - 1
                >= num_nodes
            ),
            f"{num_nodes} idle nodes",
        )

    def start(self) -> None:
        """Start everything and wait until all nodes are idle."""
        munge = self.folder
        self._start(
            "munged",
            "munged",
            "--foreground",
            "--force",  # about the access rights of folders above
            f"--socket={munge}/munge.socket",
            f"--key-file={munge}/munge.key",
            f"--pid-file={munge}/munge.pid",
            f"--seed-file={munge}/munge.seed",
            "--num-threads=2",
        )
        wait_for((munge / "munge.socket").exists, "munged's socket")
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle()

    def stop(self) -> None:
        """End all that was started here, jobs too."""
        for name in [*(n for n in self.daemons if n.startswith("slurmd")), "slurmctld", "munged"]:
            if name in self.daemons:
                self._end(name, signal.SIGKILL)
        deadline = time.monotonic() + SECONDS
        while (alive := self._processes()) and time.monotonic() < deadline:
            for pid, _ in alive:
                _kill(pid)
            time.sleep(0.05)

    def logs(self) -> str:
        """The ends of the daemons' logs, for errors."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def _answers(self) -> bool:
        assert self.daemons["slurmctld"].poll() is None, self.logs()
        return self.run("scontrol", "ping", check=False).find(" UP") > 0

    def _start(self, name: str, program: str, *words: str) -> None:
        path = os.pathsep.join([self.environ["PATH"], "/usr/sbin", "/sbin"])
        with (self.folder / f"{name}.out.log").open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                [shutil.which(program, path=path) or program, *words],
                env=self.environ,
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _end(self, name: str, number: signal.Signals) -> None:
        daemon = self.daemons.pop(name)
        daemon.send_signal(number)
        daemon.wait()

    def _processes(self) -> list[tuple[int, str]]:
        """Process ids and command lines of all that has this lab in its environment."""
        mark = f"SLURM_CONF={self.environ['SLURM_CONF']}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    if words:  # a zombie has none
                        found.append((int(folder.name), words.decode(errors="replace")))
        return found


def wait_for(is_there: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Poll until `is_there()`."""
    deadline = time.monotonic() + seconds
    while not is_there():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)


@contextmanager
def slurm_lab(environ: dict[str, str], *, kill_wait: int = 5) -> Iterator[SlurmLab]:
    """A Slurm that is gone, with all its jobs and files, when the block ends.

    Args:
        environ: what commands, and so jobs, inherit.
        kill_wait: seconds between SIGTERM and SIGKILL.
    """
    # Not under pytest's folder: the path of a socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    lab = SlurmLab(folder=folder, environ={**environ, "SLURM_CONF": str(folder / "slurm.conf")})
    try:
        _write_files(folder, kill_wait)
        lab.start()
        yield lab
    finally:
        lab.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(folder: Path, kill_wait: int) -> None:
    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(1 + len(NODES))
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} "
        f"RealMemory=4000 Gres=gpu:{GPUS} Feature=fast"
        for node, port in zip(NODES, ports[1:], strict=True)
    ]
    for name in ("state", *(f"{kind}.{node}" for node in NODES for kind in ("spool", "tmp"))):
        (folder / name).mkdir()
    for gpu in range(GPUS):  # /dev/null under another name
        os.mknod(folder / f"gpu{gpu}", 0o666 | 0o020000, os.makedev(1, 3))
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    conf = CONF.format(
        folder=folder,
        host=host,
        user=Path("/proc/self").owner(),
        controller_port=ports[0],
        nodes="\n".join(nodes),
        kill_wait=kill_wait,
    )
    (folder / "slurm.conf").write_text(conf)
    gpus = f"NodeName=n[1-4] Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n"
    (folder / "gres.conf").write_text(gpus)


def _free_ports(number: int) -> Sequence[int]:
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _node_of(pid: int) -> str | None:
    """The virtual node of a step daemon: its own environment, else that of a task below it."""
    for each in [pid, *_descendants(pid)]:
        with suppress(OSError):
            for word in (Path("/proc") / str(each) / "environ").read_bytes().split(b"\0"):
                if word.startswith(b"SLURMD_NODENAME="):
                    return word.partition(b"=")[2].decode()
    return None


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(stat[1]), []).append(int(folder.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
