"""A real Slurm of virtual nodes on this machine: munged, slurmctld and slurmds under one folder.

Everything listens on free ports and belongs to the lab's folder, so that several labs stand side by
side; `close` leaves nothing.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.cluster.hosts import Hosts

LOOPBACK = "127.0.0.1"
SBIN = ("/usr/sbin", "/sbin")

# cred_expire=5, the least that is taken: a requeued job is held for 6 s instead of 121.
CONF = """\
ClusterName=lab
SlurmctldHost={host}({address})
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
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
KillWait=2
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
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/linux
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL State=UP PriorityTier=100 PreemptMode=OFF
"""


class SlurmLab:
    """A running Slurm.

    Args:
        folder: a new one, with a short path: sockets lie in it.
        num_nodes: n1, n2, ...
        num_gpus: fake ones a node, made by mknod.
        cpus_per_node: as Slurm counts them; nothing is bound to them.
        hosts: each node in a network of its own; None: all on the loopback interface.
    """

    def __init__(
        self,
        folder: Path,
        num_nodes: int = 4,
        num_gpus: int = 0,
        cpus_per_node: int = 4,
        hosts: Hosts | None = None,
    ) -> None:
        self.folder = folder
        self.hosts = hosts
        self.nodes = [f"n{number}" for number in range(1, num_nodes + 1)]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        path = os.pathsep.join([os.environ["PATH"], *SBIN])
        self.environ = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
        for name in list(self.environ):
            if name.startswith("SLURM_") and name != "SLURM_CONF":
                del self.environ[name]
        self._configure(num_gpus, cpus_per_node)
        self._start_munged()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self.wait(self.all_idle, 30.0, "all nodes are idle")

    def _configure(self, num_gpus: int, cpus_per_node: int) -> None:
        (self.folder / "state").mkdir(parents=True)
        ports = free_ports(len(self.nodes) + 1)
        gpus = f" Gres=gpu:{num_gpus}" if num_gpus else ""
        lines = []
        for number, (node, port) in enumerate(zip(self.nodes, ports[1:], strict=True), 1):
            address = self.hosts.address(number) if self.hosts else LOOPBACK
            (self.folder / f"tmp.{node}").mkdir()
            lines.append(
                f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr={address} "
                f"Port={port} CPUs={cpus_per_node} RealMemory=4000{gpus}"
            )
        text = CONF.format(
            host=socket.gethostname(),
            address=self.hosts.gateway if self.hosts else LOOPBACK,
            port=ports[0],
            folder=self.folder,
            nodes="\n".join(lines),
        )
        (self.folder / "slurm.conf").write_text(text)
        gres = ""
        for number in range(num_gpus):
            device = self.folder / f"gpu{number}"
            subprocess.run(["mknod", device, "c", "1", "3"], check=True)
            gres += f"NodeName={','.join(self.nodes)} Name=gpu File={device}\n"
        (self.folder / "gres.conf").write_text(gres)

    def _start_munged(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        here = f"{self.folder}/munge"
        self._start(
            "munged",
            [
                *("munged", "--foreground", "--force", f"--key-file={key}"),
                *(f"--socket={here}.socket", f"--pid-file={here}.pid"),
                *(f"--log-file={here}.log", f"--seed-file={here}.seed"),
            ],
        )
        self.wait((self.folder / "munge.socket").exists, 10.0, "munged listens")

    def start_controller(self) -> None:
        """Start slurmctld (again)."""
        self._start("slurmctld", ["slurmctld", "-D", "-f", self.environ["SLURM_CONF"]])

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node (again)."""
        enter = self.hosts.enter(self.nodes.index(node) + 1) if self.hosts else []
        self._start(node, [*enter, "slurmd", "-N", node, "-D", "-f", self.environ["SLURM_CONF"]])

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environ, stdout=out, stderr=out, start_new_session=True
            )

    def kill(self, name: str) -> None:
        """SIGKILL to slurmctld, or to the slurmd of a node; jobs live on."""
        self._daemons[name].kill()
        self._daemons[name].wait()

    def kill_node(self, node: str, *, with_slurmd: bool = True, step: str | None = None) -> None:
        """As if the power failed: all that runs on the node is gone at once, slurmd too.

        Args:
            node: which one.
            with_slurmd: False: Slurm learns of nothing.
            step: only this one of the node's job: "0"; the batch script is "4294967291".
        """
        if with_slurmd:
            self.kill(node)
        for pid in self.processes(node, step):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, node: str | None = None, step: str | None = None) -> list[int]:
        """What jobs of this lab have started (on a node), and the stepds that look after it."""
        wanted = [f"SLURM_CONF={self.environ['SLURM_CONF']}"]
        wanted += [f"SLURMD_NODENAME={node}"] if node else []
        wanted += [f"SLURM_STEP_ID={step}"] if step else []
        found: set[int] = set()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):
                environ = (entry / "environ").read_bytes()
                words = environ.decode(errors="replace").split("\0")
                if b"SLURM_JOB_ID=" not in environ or not set(wanted) <= set(words):
                    continue
                found.add(int(entry.name))
                found |= _stepds_above(int(entry.name))
        return sorted(found)

    def run(self, *words: str | Path, check: bool = True, **environ: str) -> str:
        """A command of Slurm's; returns what it prints."""
        done = subprocess.run(
            [str(word) for word in words],
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def submit(self, *words: str | Path, **environ: str) -> str:
        """Sbatch these words; returns the job's id."""
        return self.run("sbatch", "--parsable", *words, **environ).strip()

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says, field by field."""
        text = self.run("scontrol", "-o", "show", "job", job_id, check=False)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait_for(self, job_id: str, states: Iterable[str], seconds: float) -> dict[str, str]:
        """The job once it is in one of `states`."""
        wanted = set(states)

        def is_there() -> bool:
            return self.job(job_id).get("JobState") in wanted

        self.wait(is_there, seconds, f"job {job_id} is {' or '.join(sorted(wanted))}")
        return self.job(job_id)

    def wait(self, condition: Callable[[], object], seconds: float, words: str) -> None:
        """Until `condition`, looked at five times a second."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (
                f"after {seconds} s not yet: {words}\n{self.state()}"
            )
            time.sleep(0.2)

    def state(self) -> str:
        """For a failed test: jobs, nodes and the last words of the daemons."""
        texts = [self.run("squeue", "-l", check=False), self.run("sinfo", "-N", "-l", check=False)]
        logs = sorted(self.folder.glob("*.log"))
        texts += [f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs]
        return "\n".join(texts)

    def all_idle(self) -> bool:
        """Whether every node waits for work."""
        states = self.run("sinfo", "-h", "-p", "main", "-N", "-o", "%t", check=False).split()
        return states == ["idle"] * len(self.nodes)

    def close(self) -> None:
        """End jobs and daemons."""
        for node in self.nodes:
            with suppress(Exception):
                self.kill_node(node)
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # the folder that was made for it alone
            self.folder.parent.rmdir()


@contextmanager
def slurm_lab(
    folder: Path,
    num_nodes: int = 4,
    num_gpus: int = 0,
    cpus_per_node: int = 4,
    hosts: Hosts | None = None,
) -> Iterator[SlurmLab]:
    """A lab that is closed at the end; its folder must not exist yet."""
    lab = SlurmLab(folder, num_nodes, num_gpus, cpus_per_node, hosts)
    try:
        yield lab
    finally:
        lab.close()


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody used a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _stepds_above(pid: int) -> set[int]:
    """The slurmstepds among the ancestors of a process."""
    found = set()
    while pid > 1:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        if "slurmstepd" in fields[0]:
            found.add(pid)
        pid = int(fields[2].split()[1])
    return found
