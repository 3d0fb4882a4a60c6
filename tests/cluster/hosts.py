"""Hosts of their own network on one machine: namespaces behind a bridge, gone at the end.

el<n>b  10.x.0.254  this machine          el<n>1 ── eth0 10.x.0.1  namespace el<n>h1
                    └── bridge ────────── el<n>2 ── eth0 10.x.0.2  namespace el<n>h2 ...
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Hosts:
    """`number` namespaces; host i is counted from 1."""

    prefix: str
    network: str
    number: int

    @property
    def gateway(self) -> str:
        """This machine's own address among them."""
        return f"{self.network}.254"

    def address(self, host: int) -> str:
        """Of its eth0."""
        return f"{self.network}.{host}"

    def enter(self, host: int) -> list[str]:
        """Words in front of a command; not `ip netns exec`, which hides the cgroups from slurmd."""
        return ["nsenter", f"--net=/run/netns/{self.prefix}h{host}", "unshare", "--uts"]

    def link(self, host: int, state: str) -> None:
        """Pull a host's cable ("down"), or plug it in ("up")."""
        _ip("link", "set", f"{self.prefix}{host}", state)


@contextmanager
def network_hosts(number: int) -> Iterator[Hosts]:
    """Namespaces that see each other and this machine."""
    hosts = _claim_network(number)
    bridge = f"{hosts.prefix}b"
    try:
        _ip("addr", "add", f"{hosts.gateway}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in range(1, number + 1):
            space = f"{hosts.prefix}h{host}"
            cable = f"{hosts.prefix}{host}"
            _ip("netns", "add", space)
            peer = ("peer", "name", "eth0", "netns", space)
            _ip("link", "add", cable, "type", "veth", *peer)
            _ip("link", "set", cable, "master", bridge, "up")
            _ip("-n", space, "addr", "add", f"{hosts.address(host)}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", space, "link", "set", device, "up")
        yield hosts
    finally:
        for host in range(1, number + 1):
            _ip("netns", "del", f"{hosts.prefix}h{host}", check=False)
            _ip("link", "del", f"{hosts.prefix}{host}", check=False)
        _ip("link", "del", bridge, check=False)


def _claim_network(number: int) -> Hosts:
    """Make the bridge of a network that no other lab has; its name is the claim."""
    for slot in range(os.getpid(), os.getpid() + 200):
        hosts = Hosts(f"el{slot % 200}", f"10.{slot % 200 + 20}.0", number)
        words = ["ip", "link", "add", f"{hosts.prefix}b", "type", "bridge"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return hosts
        assert "exists" in done.stderr, done.stderr
    raise AssertionError("200 labs at once")


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"ip {words}: {done.stderr}"
