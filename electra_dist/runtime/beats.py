"""Signs of life: which phase each rank is in, for its neighbours at once and for all by a file.

    <tmp>/electra_dist_<uid>_<run>_<attempt>/rank_00003    one line, written over at each phase
    RUN/heartbeat/node_000                                 of all ranks of a node, every 10 s

A beat is a write of 40 bytes into mapped memory: a rank that is stopped or stuck need not be asked
where it is. Only ranks of one host see each other's; what they know of them stands in the node's
file, which its local rank 0 writes.
"""

from __future__ import annotations

import logging
import mmap
import os
import shutil
import tempfile
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import write_json_atomic
from electra_dist.runtime.phases import PHASES, Current

log = logging.getLogger(__name__)

_LENGTH = 64


class Seat(NamedTuple):
    """Where a rank sits."""

    local_rank: int
    host: str


@dataclass(frozen=True, kw_only=True)
class Node:
    """One host's ranks."""

    number: int
    """In the order of their first ranks."""
    host: str
    ranks: tuple[int, ...]


def nodes_of(seats: list[Seat]) -> list[Node]:
    """The nodes of a run, from the seat of each rank: each local rank 0 makes a node of its host.

    A host on which two launchers started ranks has two local ranks 0: the later ones of a number
    belong to the later node.
    """
    members: list[list[int]] = []
    hosts: list[str] = []
    for rank, seat in enumerate(seats):
        places = [
            number
            for number, ranks in enumerate(members)
            if hosts[number] == seat.host
            and seat.local_rank not in {seats[other].local_rank for other in ranks}
        ]
        if seat.local_rank == 0 or not places:
            members.append([rank])
            hosts.append(seat.host)
        else:
            members[places[0]].append(rank)
    return [
        Node(number=number, host=host, ranks=tuple(ranks))
        for number, (host, ranks) in enumerate(zip(hosts, members, strict=True))
    ]


def beats_folder(attempt: Attempt) -> Path:
    """On this host's own disk, of this user, run and attempt."""
    run = zlib.crc32(str(attempt.run_folder.resolve()).encode())
    name = f"electra_dist_{os.getuid()}_{run:08x}_{attempt.number}"
    return Path(tempfile.gettempdir()) / name


class Beats:
    """This rank's beat, and a look at those of the other ranks of its host.

    A disk that takes no files here makes every rank's beat unknown to the others, and ends no run.
    """

    def __init__(self, attempt: Attempt, rank: int, node: Node) -> None:
        self.node = node
        self._attempt = attempt
        self._rank = rank
        self._folder = beats_folder(attempt)
        self._memory: mmap.mmap | None = None
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path = self._folder / f"rank_{rank:05d}"
            path.write_bytes(bytes(_LENGTH))
            with path.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), _LENGTH)
        except OSError as error:
            log.warning("no signs of life for other ranks in %s: %s", self._folder, error)

    def beat(self, current: Current) -> None:
        """Say where this rank is; called at each change of phase."""
        if self._memory is not None:
            line = (
                f"{current.step} {current.number} {PHASES.index(current.phase)} {time.time():.3f} "
            )
            self._memory[: len(line)] = line.encode()

    def look(self) -> dict[int, dict[str, Any]]:
        """Step, phase and since when (seconds since 1970), of each rank of this node."""
        return {rank: _read(self._folder / f"rank_{rank:05d}") for rank in self.node.ranks}

    def write_node_file(self) -> None:
        """RUN/heartbeat/node_NNN; a disk that does not take it ends no run.

        Raises:
            Superseded: a later attempt owns the run folder.
        """
        path = self._attempt.run_folder / "heartbeat" / f"node_{self.node.number:03d}"
        ranks = {str(rank): beat for rank, beat in self.look().items() if beat}
        value = {
            "time": round(time.time(), 3),
            "attempt": self._attempt.number,
            "host": self.node.host,
            "ranks": ranks,
        }
        try:
            self._attempt.check_current()
            path.parent.mkdir(exist_ok=True)
            write_json_atomic(path, value)
        except OSError as error:
            log.debug("%s was not written: %s", path, error)

    def close(self) -> None:
        """Forget this rank's beat; the last rank of the host takes the folder along."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        (self._folder / f"rank_{self._rank:05d}").unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()

    def remove_older(self) -> None:
        """Remove what killed attempts of this run have left on this host."""
        stem = self._folder.name.rpartition("_")[0]
        for path in self._folder.parent.glob(f"{stem}_*"):
            number = path.name.rpartition("_")[2]
            if number.isdigit() and int(number) < self._attempt.number:
                shutil.rmtree(path, ignore_errors=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        step, number, phase, since = path.read_bytes().split(b"\0")[0].split()[:4]
        return {
            "step": int(step),
            "number": int(number),
            "phase": PHASES[int(phase)],
            "since": float(since),
        }
    except (OSError, ValueError, IndexError):  # not there, or half a line: the next look tells
        return {}
