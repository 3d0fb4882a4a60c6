"""Which interface gloo is told to take, on a machine whose only sure network is the loopback."""

import socket

import psutil

from electra_dist.runtime.network import (
    KEY,
    VARIABLE,
    choose_interface,
    interface_of,
    own_address,
    tell_address,
)
from electra_dist.runtime.world import World


class DictStore:
    """As much of a store as is used."""

    def __init__(self, **values: str) -> None:
        self.values = values

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)


def world(local_world_size: int = 2, master_addr: str = "127.0.1.1") -> World:
    return World(
        rank=0,
        world_size=4,
        local_rank=0,
        local_world_size=local_world_size,
        master_addr=master_addr,
        master_port=29500,
        launcher="environment",
    )


LOOPBACK = next(
    name
    for name, entries in psutil.net_if_addrs().items()
    if any(entry.address == "127.0.0.1" for entry in entries)
)


def test_addresses_and_interfaces() -> None:
    assert own_address("127.0.0.1", 29500) == "127.0.0.1"
    assert own_address("no-such-host.invalid", 29500) is None
    assert interface_of("127.0.0.1") == LOOPBACK
    assert interface_of("192.0.2.1") is None
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family == socket.AF_INET and name != LOOPBACK:
                assert own_address(entry.address, 29500) == entry.address
                assert interface_of(entry.address) == name


def test_a_loopback_address_is_told_to_nobody() -> None:
    store = DictStore()
    tell_address(store, world())
    assert store.values == {}


def test_rank_0s_host_takes_the_way_to_an_address_that_another_host_told() -> None:
    environ: dict[str, str] = {}
    assert choose_interface(DictStore(), world(), environ) is None
    assert environ == {}, "nobody told: all ranks are behind loopback, as on virtual nodes"
    store = DictStore(**{KEY: "127.0.0.1"})
    assert choose_interface(store, world(), environ) == LOOPBACK
    assert environ == {VARIABLE: LOOPBACK}


def test_one_host_and_a_users_own_word_are_left_alone() -> None:
    store = DictStore(**{KEY: "127.0.0.1"})
    environ: dict[str, str] = {}
    assert choose_interface(store, world(local_world_size=4), environ) is None
    assert environ == {}
    environ = {VARIABLE: "ib0"}
    assert choose_interface(store, world(), environ) is None
    assert environ == {VARIABLE: "ib0"}
