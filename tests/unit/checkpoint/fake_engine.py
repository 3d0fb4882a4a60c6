"""What a store needs of an engine, and a store on one rank without a process group."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from electra_dist.checkpoint.layout import KINDS
from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.engine.protocol import Fragment
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.control import Control
from electra_dist.runtime.files import read_json_lines
from electra_dist.runtime.world import World

SHAPES: dict[str, tuple[int, ...]] = {"tower.weight": (6, 7), "tower.bias": (5,), "scale": ()}


class DictEngine:
    """The part of an engine that a store needs: named tensors and who owns what of them."""

    device = torch.device("cpu")

    def __init__(
        self, seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES, rank: int = 0, ranks: int = 1
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.parameter_shapes = shapes
        self.tensors = {
            (name, kind): torch.randn(shape, generator=generator)
            for name, shape in shapes.items()
            for kind in KINDS
        }
        self.num_restored = 0
        self._rank, self._ranks = rank, ranks

    def local_fragments(self) -> Iterator[Fragment]:
        for (name, kind), tensor in self.tensors.items():
            yield Fragment(name, kind, 0, tensor.view(-1))

    def owned_fragments(self) -> Iterator[Fragment]:
        for one in self.local_fragments():
            ends = [r * len(one.values) // self._ranks for r in (self._rank, self._rank + 1)]
            if ends[0] < ends[1]:
                yield one._replace(start=ends[0], values=one.values[slice(*ends)])

    def state_restored(self) -> None:
        self.num_restored += 1

    def equals(self, seed: int) -> bool:
        other = DictEngine(seed, self.parameter_shapes)
        return all(torch.equal(t, other.tensors[key]) for key, t in self.tensors.items())


def a_store(
    attempt: Attempt,
    keep_last: int = 3,
    rank: int = 0,
    ranks: int = 1,
    deadline: float = 5.0,
    asynchronous: bool = True,
    parity: bool = False,
) -> CheckpointStore:
    """Without a process group an exchange returns what this rank gave: that is enough here."""
    world = replace(
        World.from_environment({}),
        rank=rank,
        world_size=ranks,
        local_rank=rank,
        local_world_size=ranks,
    )
    control = Control(group=None, store=None, world=world, timeout_seconds=1.0)
    return CheckpointStore(
        attempt,
        control,
        keep_last=keep_last,
        commit_timeout_seconds=deadline,
        asynchronous=asynchronous,
        parity=parity,
    )


def saved(store: CheckpointStore, engine: DictEngine, step: int, state: dict[str, Any]) -> bool:
    """Save, wait for it, and end the store's thread."""
    store.save(engine, step, state)
    try:
        return store.wait()
    finally:
        store.close()


def save(store: CheckpointStore, step: int, seed: int | None = None) -> bool:
    """Save an engine whose tensors follow from `seed` (the step, where it is left out)."""
    return saved(store, DictEngine(step if seed is None else seed), step, {"step": step})


def restored(store: CheckpointStore) -> tuple[DictEngine, dict[str, Any] | None]:
    engine = DictEngine(seed=-1)
    return engine, store.restore(engine, SHAPES)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def events(run: Path) -> list[tuple[str, Any]]:
    """What happened, and to what."""
    return [
        (record["event"], record.get("step", record.get("checkpoint")))
        for record in read_json_lines(run / "events.jsonl")
    ]


def damage(run: Path, step: int) -> None:
    path = run / f"checkpoints/step_{step:08d}/shard_00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x10
    path.write_bytes(data)
