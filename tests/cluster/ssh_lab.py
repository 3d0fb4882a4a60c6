"""Hosts with a real sshd each on this machine: node1, node2, ...; gone at the end.

A host has its own network (tests/cluster/hosts.py), processes, name, /etc/hosts, /dev/shm and /run,
and shares the files of this machine: RUN lies on a disk that all see. Nothing outside of the lab's
folder is written; what stands in /etc is bound over, for the host's processes alone.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.cluster.hosts import Hosts, network_hosts

SSHD_CONFIG = """\
HostKey {folder}/{name}.key
AuthorizedKeysFile {folder}/user.key.pub
AuthenticationMethods publickey
PermitRootLogin yes
StrictModes no
UsePAM no
UseDNS no
PidFile none
"""
SSH_CONFIG = """\
Host *
    IdentityFile {folder}/user.key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 10
    LogLevel ERROR
"""
# sshd lets nobody in whose password is locked by a "!", as root's is on some images.
SHADOW = "root:*:20000:0:99999:7:::\nsshd:*:20000:0:99999:7:::\n"

BE_A_HOST = """\
set -e
hostname "$2"
mount --bind "$1/$2.hosts" /etc/hosts
mount --bind "$1/ssh_config" /etc/ssh/ssh_config
mount --bind "$1/shadow" /etc/shadow
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
exec "$3" -D -e -f "$1/$2.sshd_config"
"""
BE_A_LOGIN_NODE = """\
set -e
mount --bind "$1/login.hosts" /etc/hosts
mount --bind "$1/ssh_config" /etc/ssh/ssh_config
shift
exec "$@"
"""
READY_SECONDS = 20.0


class SshLab:
    """Hosts that can be switched on and off.

    Args:
        folder: an empty one.
        hosts: their networks.
    """

    def __init__(self, folder: Path, hosts: Hosts) -> None:
        self.folder = folder
        self.hosts = hosts
        self.names = [f"node{number}" for number in range(1, hosts.number + 1)]
        self._inits: dict[str, subprocess.Popen[bytes]] = {}
        self._configure()

    def _configure(self) -> None:
        known = []
        addresses = {n: self.hosts.address(i) for i, n in enumerate(self.names, 1)}
        everybody = {**addresses, socket.gethostname(): self.hosts.gateway}
        lines = [f"{address} {name}" for name, address in everybody.items()]
        for name, address in addresses.items():
            known.append(f"{name},{address} {_new_key(self.folder / f'{name}.key')}")
            # Debian's installer writes the second line; a rank must not offer that address.
            own = ["127.0.0.1 localhost", f"127.0.1.1 {name}"]
            self._write(f"{name}.hosts", "\n".join([*own, *lines]) + "\n")
            config = SSHD_CONFIG.format(folder=self.folder, name=name)
            self._write(f"{name}.sshd_config", config)
        _new_key(self.folder / "user.key")
        self._write("login.hosts", "\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        self._write("known_hosts", "\n".join(known) + "\n")
        self._write("ssh_config", SSH_CONFIG.format(folder=self.folder))
        self._write("shadow", SHADOW)

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def start(self, name: str) -> None:
        """Switch a host on and wait until it lets somebody in."""
        number = self.names.index(name) + 1
        spaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        sshd = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/local/sbin")
        assert sshd is not None
        words = [*self.hosts.enter(number), *spaces, "sh", "-c", BE_A_HOST]
        log = (self.folder / f"{name}.log").open("wb")
        with log:
            self._inits[name] = subprocess.Popen(
                [*words, "sh", str(self.folder), name, sshd],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(self.hosts.address(number), 22):
            said = (self.folder / f"{name}.log").read_text()
            assert self._inits[name].poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)

    def power_off(self, name: str) -> None:
        """All processes of a host end at once; its network stays."""
        space = self._pid_space(name)
        init = self._inits.pop(name)
        init.kill()  # the kernel then kills the first process of its pid namespace, and so all
        init.wait()
        while _processes(space):
            time.sleep(0.02)

    def login(self, *command: str | Path) -> list[str]:
        """`command` on this machine as a login node: it knows the hosts' names and has a key."""
        words = ["unshare", "--mount", "sh", "-c", BE_A_LOGIN_NODE, "sh", str(self.folder)]
        return [*words, *(str(word) for word in command)]

    def processes(self, name: str, having: str) -> list[int]:
        """Processes of a host whose command line has `having`, by their number on this machine."""
        return _processes(self._pid_space(name), having)

    def _pid_space(self, name: str) -> Path:
        # `unshare` itself stays outside; pid_for_children is where its child, sshd, lives.
        return Path(f"/proc/{self._inits[name].pid}/ns/pid_for_children").readlink()

    def close(self) -> None:
        """Switch all hosts off."""
        for name in list(self._inits):
            self.power_off(name)


@contextmanager
def ssh_lab(folder: Path, number: int = 2) -> Iterator[SshLab]:
    """`number` hosts, as long as the block runs."""
    folder.mkdir(parents=True)
    with network_hosts(number) as hosts:
        lab = SshLab(folder, hosts)
        try:
            for name in lab.names:
                lab.start(name)
            yield lab
        finally:
            lab.close()


def _processes(space: Path, having: str = "") -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_here = (entry / "ns" / "pid").readlink() == space
            if is_here and having.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def _new_key(path: Path) -> str:
    """Make a key without a passphrase; its public half."""
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    return path.with_name(f"{path.name}.pub").read_text().strip()


def _answers(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=1.0) as connection:
        return connection.recv(4).startswith(b"SSH")
    return False
