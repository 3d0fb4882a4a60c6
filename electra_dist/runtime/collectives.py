"""Joining and leaving the ranks of a run; what they say to each other is in `control.py`."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]
    DistStoreError,
    HashStore,
    PrefixStore,
    Store,
    TCPStore,
)

from electra_dist.errors import UserError
from electra_dist.runtime.control import (
    GRACE_SECONDS,
    LINGER_SECONDS,
    POLL_SECONDS,
    CollectiveError,
    CollectiveTimeout,
    Control,
    RankLost,
    ask_store,
    name_ranks,
    store_host,
)
from electra_dist.runtime.network import choose_interface, tell_address
from electra_dist.runtime.world import World

log = logging.getLogger(__name__)

__all__ = [
    "CollectiveError",
    "CollectiveTimeout",
    "Control",
    "ProcessGroups",
    "RankLost",
    "device_for",
    "leave",
    "start_process_group",
]


def device_for(world: World) -> torch.device:
    """cuda:(local_rank % device_count), or the CPU where there is no CUDA device.

    Raises:
        UserError: ranks would share a device, which NCCL refuses.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    num_devices = torch.cuda.device_count()
    # A single one may be all that this rank is shown of several.
    if 1 < num_devices < world.local_world_size:
        raise UserError(
            f"{world.local_world_size} ranks were started on a host with {num_devices} GPUs, but "
            "each rank needs one of its own; start no more ranks than GPUs"
        )
    return torch.device("cuda", world.local_rank % num_devices)


@dataclass(frozen=True, kw_only=True)
class ProcessGroups:
    """What a rank needs to talk to the others; all of it works alone too."""

    world: World
    device: torch.device
    control: Control
    has_torch_group: bool
    """Whether torch.distributed is initialised (engines need that even with one rank)."""

    def shutdown(self, graceful: bool) -> None:
        """Leave the group: with the others if all is well, without a word to them after an error.

        After an error (`graceful` False) end the process by `leave`: an unfinished gloo operation
        can't be aborted and would hold the interpreter's exit until its timeout.
        """
        if not self.has_torch_group or not graceful:
            return
        self.control.barrier("shutdown")
        dist.destroy_process_group()
        store = self.control.store
        if store is None:
            return
        if not self.world.is_leader:
            ask_store(lambda: store.set(f"left/{self.world.rank}", "1"), GRACE_SECONDS)
        elif self.world.world_size > 1:
            # The host of the store leaves last, else the others' goodbye is a stack trace of torch.
            others = [f"left/{rank}" for rank in range(1, self.world.world_size)]
            ask_store(
                lambda: store.wait(others, timedelta(seconds=GRACE_SECONDS)), 2 * GRACE_SECONDS
            )


def leave(exit_code: int) -> NoReturn:
    """End this process now, after an error: flush what was said, run no collective."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def start_process_group(
    world: World, timeout_seconds: float, *, always: bool = False
) -> ProcessGroups:
    """Join the other ranks: torch.distributed (NCCL on CUDA, gloo on the CPU) and a control group.

    The torchrun variables of this world are put in os.environ: DeepSpeed reads its rank there.

    Args:
        world: this process and where rank 0 is.
        timeout_seconds: deadline of the start and of every exchange after it.
        always: initialise torch.distributed with a single rank too.

    Raises:
        CollectiveError: ranks did not come in time; the message names them.
        UserError: rank 0's port is taken.
    """
    device = device_for(world)
    if world.world_size == 1 and not always:
        control = Control(group=None, store=None, world=world, timeout_seconds=timeout_seconds)
        return ProcessGroups(world=world, device=device, control=control, has_torch_group=False)
    store = _connect_store(world, timeout_seconds) if world.world_size > 1 else HashStore()
    # Twice, for two phases that each have this deadline, and a little more than torch's own.
    with _no_hang_for_ever(world, 2 * timeout_seconds + 10):
        if world.world_size > 1:
            _wait_for_all(store, world, timeout_seconds)
        return _make_groups(world, device, store, timeout_seconds)


def _make_groups(
    world: World, device: torch.device, store: Store, timeout_seconds: float
) -> ProcessGroups:
    os.environ.update(world.as_environment())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Longer than ours, so that our deadline, which names the missing ranks, is the one that fires.
    patience = timedelta(seconds=timeout_seconds + 5)
    control = Control(group=None, store=store, world=world, timeout_seconds=timeout_seconds)
    try:
        if world.world_size > 1:
            choose_interface(store, world, os.environ)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("torch", store),
            rank=world.rank,
            world_size=world.world_size,
            timeout=patience,
            device_id=_bound_device(device, world),
        )
        if world.world_size > 1:
            control.group = dist.new_group(backend="gloo", timeout=patience, group_desc="control")
    except RuntimeError as error:
        # Its own words are the only ones about a GPU that two ranks share, or a driver.
        log.error("rank %d: %s", world.rank, str(error).strip().split("\n")[0])
        raise control.failure("start of torch.distributed") from error
    return ProcessGroups(world=world, device=device, control=control, has_torch_group=True)


def _bound_device(device: torch.device, world: World) -> torch.device | None:
    """The device that NCCL's communicators are made for at once; None: when they are first used.

    Not with one rank: groups would then be split off a communicator of one, which fails on some
    machines (DeepSpeed's issue 8248).
    """
    return device if device.type == "cuda" and world.world_size > 1 else None


@contextmanager
def _no_hang_for_ever(world: World, seconds: float) -> Iterator[None]:
    """End this process if the block takes longer than `seconds`.

    Some calls of torch's store wait without a deadline for a host that is stopped or cut off (one
    that has died closes its connection, which they notice). Nothing is claimed or written yet.
    """

    def give_up() -> None:
        why = "does not answer while the ranks are starting: it hangs or is cut off."
        print(f"rank {world.rank}: {store_host(world)} {why}", file=sys.stderr)
        leave(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _connect_store(world: World, timeout_seconds: float) -> Store:
    # torchrun's agent already listens at this port: rank 0 would not get it.
    hosts_it = world.is_leader and world.launcher != "torchrun"
    try:
        store = TCPStore(
            world.master_addr,
            world.master_port,
            is_master=hosts_it,
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        if hosts_it:
            raise UserError(
                f"Rank 0 can't listen at {world.master_addr}:{world.master_port} "
                f"({_first_line(error)}): set MASTER_PORT to a free port for all ranks."
            ) from error
        raise RankLost(
            f"{store_host(world)} could not be reached by rank {world.rank} within "
            f"{timeout_seconds:g} s: if its name does not resolve here, export MASTER_ADDR.",
            "start",
            (0,),
        ) from error
    return PrefixStore(f"electra_dist/{world.restart_count}", store)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _wait_for_all(store: Store, world: World, timeout_seconds: float) -> None:
    """Return when all ranks have written their names: a few keys, whatever the world size."""
    deadline = time.monotonic() + timeout_seconds
    try:
        tell_address(store, world)
        store.append("start/ranks", f"{world.rank},")  # type: ignore[attr-defined]  # not in stubs
        if store.add("start/count", 1) == world.world_size:
            store.set("start/all", "1")
        while not _appears(store, "start/all"):
            if time.monotonic() >= deadline or store.check(["start/failed"]):
                store.set("start/failed", "1")
                break
        else:
            return
        arrived = {int(rank) for rank in store.get("start/ranks").decode().rstrip(",").split(",")}
    except RuntimeError as error:
        message = f"{store_host(world)} went away while the ranks were starting."
        raise RankLost(message, "start", (0,)) from error
    if world.is_leader:
        time.sleep(LINGER_SECONDS)
    missing = tuple(rank for rank in range(world.world_size) if rank not in arrived)
    raise CollectiveTimeout(
        f"{name_ranks(missing)} of {world.world_size} did not start in {timeout_seconds:g} s.",
        "start",
        missing,
    )


def _appears(store: Store, key: str) -> bool:
    """Whether `key` is there within POLL_SECONDS."""
    try:
        store.wait([key], timedelta(seconds=POLL_SECONDS))
    except DistStoreError:
        return False
    return True
