"""Which network interface leads to the other hosts, so that gloo does not take another one.

Left alone, gloo listens at the address that this host's own name has. On Debian and Ubuntu that is
127.0.1.1, where no other host can reach it, and with several networks it may be any of them. The
network of MASTER_ADDR is one that is known to work:

    other hosts     the address from which they reach MASTER_ADDR, which they tell in the store
    rank 0's host   MASTER_ADDR may be loopback there: the way to an address that another host told
"""

import ipaddress
import socket
from collections.abc import MutableMapping
from typing import Protocol

from electra_dist.runtime.world import World

VARIABLE = "GLOO_SOCKET_IFNAME"
KEY = "start/address"


class AddressStore(Protocol):
    """What is used of torch's store."""

    def set(self, key: str, value: str) -> None:
        """Keep `value`."""

    def get(self, key: str) -> bytes:
        """The last value."""

    def check(self, keys: list[str]) -> bool:
        """Whether all are there."""


def tell_address(store: AddressStore, world: World) -> None:
    """Leave this host's address in the store, before all ranks have met; nothing on one host."""
    if world.local_world_size == world.world_size:
        return
    address = own_address(world.master_addr, world.master_port)
    if address is not None and not ipaddress.ip_address(address).is_loopback:
        store.set(KEY, address)


def choose_interface(
    store: AddressStore, world: World, environ: MutableMapping[str, str]
) -> str | None:
    """Set GLOO_SOCKET_IFNAME to the interface that leads to the other hosts; returns its name.

    Call it when all ranks have told. What a user has set stays. None, and nothing is set, where all
    ranks are on one host or none was found.
    """
    if environ.get(VARIABLE) or world.local_world_size == world.world_size:
        return None
    address = own_address(world.master_addr, world.master_port)
    if address is not None and ipaddress.ip_address(address).is_loopback:
        told = store.get(KEY).decode() if store.check([KEY]) else None
        address = own_address(told, world.master_port) if told else None
    name = interface_of(address) if address else None
    if name is not None:
        environ[VARIABLE] = name
    return name


def own_address(host: str, port: int) -> str | None:
    """The address of this host from which it reaches `host`; None where there is no way or name.

    Nothing is sent: a datagram socket is only told where it would send to.
    """
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            address: str = probe.getsockname()[0]
    except OSError:
        return None
    return address.partition("%")[0]


def interface_of(address: str) -> str | None:
    """Name of the interface that has `address`; None where none has it, as in some containers."""
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return name
    return None
