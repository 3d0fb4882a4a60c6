"""Joining the ranks of a run, and small exchanges between them that never wait for ever.

A collective of torch that loses a peer says "connection closed by peer", or nothing for half an
hour. Here each exchange has a name and a deadline, and its failure says which ranks are missing:

    good path     one asynchronous gloo operation and its wait: nothing else is sent or asked
    waiting       twice a second: has a peer written to the store that this exchange has failed?
    failed        each rank that is here writes its name under `late/<sequence>` in the store,
                  waits GRACE_SECONDS for the others to do so, and reads who did not

The store is torch's TCPStore. Rank 0 hosts it (under torchrun: torchrun's agent), so a store that
does not answer means that its host is gone.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from electra_dist.runtime.phases import Phases
from electra_dist.runtime.world import World

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

POLL_SECONDS = 0.5
"""How often a rank that waits asks whether another one has already given up."""

GRACE_SECONDS = 2.0
"""How long a failed exchange waits for other ranks to say that they are here: a few polls."""

LINGER_SECONDS = POLL_SECONDS + 1.0
"""How much longer the store's host stays, for ranks that learn of a failure by their poll."""


class CollectiveError(RuntimeError):
    """An exchange between ranks did not complete; nothing more may be exchanged in this attempt."""

    def __init__(self, message: str, operation: str, missing: tuple[int, ...]) -> None:
        super().__init__(message)
        self.operation = operation
        """Name of the exchange that failed."""
        self.missing = missing
        """Ranks that did not say, within the grace, that they were there; empty if all did."""


class CollectiveTimeout(CollectiveError):
    """The deadline passed before every rank had arrived."""


class RankLost(CollectiveError):
    """A connection closed before the deadline: a rank has died, or left after its own error."""


def store_host(world: World) -> str:
    """In words, who hosts the store of `world`."""
    where = f"{world.master_addr}:{world.master_port}"
    if world.launcher == "torchrun":
        return f"torchrun's agent at {where}, which hosts the store,"
    return f"rank 0, which hosts the store at {where},"


class Control:
    """Small exchanges on the CPU, over a gloo group of their own, apart from the training traffic.

    Every rank calls the same exchanges in the same order, from one thread. Each raises
    CollectiveTimeout or RankLost. With one rank (`group` is None) each returns at once.
    """

    def __init__(
        self,
        *,
        group: dist.ProcessGroup | None,
        store: Store | None,
        world: World,
        timeout_seconds: float,
    ) -> None:
        self.group = group
        self.store = store
        self.rank = world.rank
        self.world_size = world.world_size
        self.timeout_seconds = timeout_seconds
        self._store_host = store_host(world)
        self._sequence = 0
        self._store_answers = True
        self.phases = Phases()
        """The clock of the thread that calls: every exchange is the phase `agree`."""

    def all_reduce_sum(self, values: Sequence[float], name: str = "all_reduce_sum") -> list[float]:
        """The element-wise sum over ranks, in float64: one message, meant for once a step."""
        if self.group is None:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64)
        self._run(name, lambda: dist.all_reduce(total, group=self.group, async_op=True))
        result: list[float] = total.tolist()
        return result

    def all_gather_floats(
        self, values: Sequence[float], name: str = "all_gather_floats"
    ) -> list[list[float]]:
        """Each rank's `values`, as many on all, in float64 and by rank: one message."""
        if self.group is None:
            return [[float(value) for value in values]]
        mine = torch.tensor(values, dtype=torch.float64)
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        self._run(name, lambda: dist.all_gather(parts, mine, group=self.group, async_op=True))
        return [part.tolist() for part in parts]

    def all_gather_objects(self, value: Any, name: str = "all_gather_objects") -> list[Any]:
        """Each rank's `value` (anything JSON can say), by rank, on every rank."""
        data = json.dumps(value).encode()
        if self.group is None:
            return [json.loads(data)]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        own_size = torch.tensor([len(data)])
        self._run(name, lambda: dist.all_gather(sizes, own_size, group=self.group, async_op=True))
        largest = max(int(size) for size in sizes)
        padded = torch.zeros(largest, dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(padded) for _ in sizes]
        self._run(name, lambda: dist.all_gather(parts, padded, group=self.group, async_op=True))
        return [
            json.loads(part[: int(size)].numpy().tobytes())
            for part, size in zip(parts, sizes, strict=True)
        ]

    def broadcast_json(self, value: Any, name: str = "broadcast_json") -> Any:
        """Rank 0's `value` (anything JSON can say) on every rank; the others' is ignored."""
        data = json.dumps(value if self.rank == 0 else None).encode()
        if self.group is None:
            return json.loads(data)
        size = torch.tensor([len(data)])
        self._run(name, lambda: dist.broadcast(size, 0, group=self.group, async_op=True))
        if self.rank != 0:
            data = bytes(int(size))
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._run(name, lambda: dist.broadcast(buffer, 0, group=self.group, async_op=True))
        return json.loads(buffer.numpy().tobytes())

    def barrier(self, name: str) -> None:
        """Return when every rank has called this."""
        self.all_reduce_sum([0.0], name=name)

    def _run(self, name: str, start: Callable[[], Any]) -> None:
        """Wait for the operation that `start` begins, or find out who keeps it from ending."""
        with self.phases.enter("agree"):
            self._wait(name, start)

    def _wait(self, name: str, start: Callable[[], Any]) -> None:
        self._sequence += 1
        entered = time.time()  # Wall clock, for other hosts to compare; deadlines are monotonic.
        deadline = time.monotonic() + self.timeout_seconds
        try:
            work = start()
        except RuntimeError as error:
            raise self.failure(name, "lost", entered) from error
        while True:
            left = deadline - time.monotonic()
            try:
                # A wait that ends by its own timeout leaves the operation running: wait again.
                work.wait(timedelta(seconds=max(0.01, min(POLL_SECONDS, left))))
                return
            except RuntimeError as error:
                if work.is_completed():
                    raise self.failure(name, "lost", entered) from error
            if time.monotonic() >= deadline:
                raise self.failure(name, "timeout", entered)
            if self._a_peer_gave_up():
                raise self.failure(name, "lost", entered)

    def _a_peer_gave_up(self) -> bool:
        store = self.store
        if store is None or not self._store_answers:
            return False
        # A store that is only slow must not end a run: after a refusal the deadline decides.
        answer = ask_store(lambda: store.check([self._late_key]), GRACE_SECONDS)
        self._store_answers = answer is not None
        return bool(answer)

    @property
    def _late_key(self) -> str:
        return f"late/{self._sequence}"

    def failure(
        self, name: str, kind: str = "lost", entered: float | None = None
    ) -> CollectiveError:
        """The error to raise for the exchange `name`, naming the ranks that are missing.

        Also for collectives of others, such as a backward pass that ended in "connection closed by
        peer": every rank that sees it calls this, and those still blocked in it count as missing.

        Args:
            name: what was going on, for the message.
            kind: "lost" (a connection closed) or "timeout".
            entered: time.time() when this rank began to wait.
        """
        store = self.store
        if store is None:
            return RankLost(f"{name!r} failed with one rank only.", name, ())
        record = {"rank": self.rank, "name": name, "entered": entered or time.time(), "kind": kind}
        line = json.dumps(record) + "\n"

        def exchange() -> bytes:
            store.append(self._late_key, line)  # type: ignore[attr-defined]  # not in the stubs
            time.sleep(GRACE_SECONDS)
            return bytes(store.get(self._late_key))

        answer = ask_store(exchange, 2 * GRACE_SECONDS + 1) if self._store_answers else None
        if answer is None:
            text = f"{self._store_host} does not answer in {name!r}: it died, hangs or is cut off."
            return RankLost(text, name, (0,))
        if self.rank == 0:
            time.sleep(LINGER_SECONDS)
        arrived = {r["rank"]: r for r in map(json.loads, answer.decode().splitlines())}
        return verdict(arrived, self.world_size, name, self.timeout_seconds)


def verdict(
    arrived: dict[int, dict[str, Any]], world_size: int, name: str, timeout_seconds: float
) -> CollectiveError:
    """The error that says what the ranks in `arrived` wrote to the store when `name` failed."""
    missing = tuple(rank for rank in range(world_size) if rank not in arrived)
    timed_out = any(record["kind"] == "timeout" for record in arrived.values())
    times = {rank: record["entered"] for rank, record in arrived.items()}
    if missing and timed_out:
        text = f"{name_ranks(missing)} did not arrive at {name!r} within {timeout_seconds:g} s"
    elif missing:
        text = f"{name_ranks(missing)} did not answer after a connection closed in {name!r}"
    else:
        slowest = max(times, key=lambda rank: times[rank])
        lag = times[slowest] - min(times.values())
        text = f"all ranks reached {name!r}, but rank {slowest} came {lag:.1f} s after the first"
    elsewhere = {rank: r["name"] for rank, r in arrived.items() if r["name"] != name}
    if elsewhere:
        text += f"; other ranks are elsewhere: {elsewhere}"
    text += f" (arrived: {name_ranks(tuple(sorted(arrived)))}); see the logs of the late ones."
    return (CollectiveTimeout if timed_out else RankLost)(text, name, missing)


def name_ranks(ranks: tuple[int, ...]) -> str:
    """The ranks in words, for a message: the first 16 of them and how many more."""
    shown = ", ".join(str(rank) for rank in ranks[:16])
    more = f" and {len(ranks) - 16} more" if len(ranks) > 16 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


def ask_store(question: Callable[[], Answer], seconds: float) -> Answer | None:
    """What `question` to the store returns, or None if it fails or takes over `seconds`.

    A thread, because the client of a TCPStore waits without a deadline for a host that is stopped
    or cut off; it is left behind then.
    """
    answers: list[Answer] = []

    def ask() -> None:
        try:
            answers.append(question())
        except RuntimeError as error:  # DistError, which every error of the store is.
            log.debug("the store: %s", str(error).partition("\n")[0])

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
