"""Do ranks still hold the same bits where they should? Hashes compared, the odd one out named.

With three ranks or more a majority names it. With two nobody can tell at once: the attempt ends,
the next one makes the same steps again (a step is arithmetic), and the rank that was further from
what these give was wrong. It need not be the only wrong one: damaged weights have made gradients
that all ranks have summed since. But these moved all ranks alike, and what differs is the damage.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from electra_dist.engine.protocol import Engine
from electra_dist.runtime.control import Control


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """What differs between ranks that should hold the same."""

    ranks: tuple[int, ...]
    """The odd ones out; none where no majority of all ranks agrees."""
    tensors: tuple[str, ...]
    index: int
    """In the first of them, flattened: where ranks differ most."""
    values: tuple[float, ...]
    """That element, by rank."""


@dataclass(frozen=True, kw_only=True)
class OpenCase:
    """A disagreement of an earlier attempt that had no majority: a replay decides it."""

    step: int
    tensor: str
    index: int
    values: tuple[float, ...]
    """That element of the tensor, by rank."""


class Replicas:
    """Compares what the ranks of a run hold in common.

    Args:
        engine: whose `shared_tensors` are compared.
        control: exchanges between ranks.
        engine_words: which engine this is: another one makes other bits.
    """

    def __init__(self, engine: Engine, control: Control, engine_words: str) -> None:
        self._engine, self._control = engine, control
        self.engine_words = engine_words
        self.case: OpenCase | None = None
        """To be decided when its step is made again."""
        self.last_agreed: int | None = None
        """Step of the last comparison that found no difference."""

    @property
    def exist(self) -> bool:
        """Whether ranks hold anything in common."""
        shared = self._engine.shared_tensors()
        return self._control.world_size > 1 and next(iter(shared), None) is not None

    def compare(self) -> Disagreement | None:
        """Hash what is shared, and find out what differs. Collective."""
        of_tensors = {name: tensor_hash(tensor) for name, tensor in self._engine.shared_tensors()}
        hashes = self._control.all_gather_objects(
            combined(of_tensors.values()), name="hashes of replicas"
        )
        if len(set(hashes)) == 1:
            return None
        by_rank = self._control.all_gather_objects(
            list(of_tensors.values()), name="hashes of tensors"
        )
        tensors = tuple(
            name
            for name, found in zip(of_tensors, zip(*by_rank, strict=True), strict=True)
            if len(set(found)) > 1
        )
        index = self._worst_element(tensors[0])
        values = self._control.all_gather_objects(self.value(tensors[0], index), name="values")
        return Disagreement(
            ranks=odd_ranks(hashes), tensors=tensors, index=index, values=tuple(values)
        )

    def value(self, name: str, index: int) -> float:
        """An element of a shared, flattened tensor, as this rank holds it."""
        shared = dict(self._engine.shared_tensors())
        return float(shared[name].detach().reshape(-1)[index])

    def _worst_element(self, name: str) -> int:
        """Where some rank differs most from rank 0. Collective."""
        own = dict(self._engine.shared_tensors())[name].detach().reshape(-1)
        of_rank_0 = own.clone()
        dist.broadcast(of_rank_0, 0)
        distances = (own.double() - of_rank_0.double()).abs()
        # A NaN is as far away as can be, unless both have it.
        distances.nan_to_num_(nan=math.inf, posinf=math.inf)
        distances[bits(own) == bits(of_rank_0)] = 0.0
        worst = int(distances.argmax())
        found = self._control.all_gather_objects([float(distances[worst]), worst], name="worst")
        return int(max(found)[1])


def odd_ranks(hashes: Sequence[str]) -> tuple[int, ...]:
    """Ranks that differ from more than half of all; none where no hash has that many."""
    [(value, count)] = Counter(hashes).most_common(1)
    if 2 * count <= len(hashes):
        return ()
    return tuple(rank for rank, found in enumerate(hashes) if found != value)


def wrong_ranks(case: OpenCase, replayed: float) -> tuple[int, ...]:
    """Ranks whose value was further from the replayed one than the nearest; none if all were."""
    distances = [abs(value - replayed) for value in case.values]
    distances = [math.inf if math.isnan(distance) else distance for distance in distances]
    return tuple(rank for rank, found in enumerate(distances) if found > min(distances))


def open_case(
    events: Iterable[dict[str, Any]], step: int, *, world_size: int, engine: str
) -> OpenCase | None:
    """What the newest `corruption` event left undecided, if steps from `step` on can decide it.

    Only the same engine on as many ranks makes the same bits.
    """
    newest = None
    for event in events:
        if event["event"] in ("corruption", "corruption_resolved"):
            newest = event
    if newest is None or newest["event"] == "corruption_resolved" or newest["ranks"]:
        return None
    if newest["step"] <= step or (newest["world_size"], newest["engine"]) != (world_size, engine):
        return None
    return OpenCase(
        step=newest["step"],
        tensor=newest["tensors"][0],
        index=newest["index"],
        values=tuple(map(float, newest["values"])),
    )


def tensor_hash(tensor: Tensor) -> int:
    """64 bits of a tensor's bits; on a CUDA device by an XOR there, which any one flip changes."""
    tensor = tensor.detach()
    if tensor.device.type == "cuda":
        return int(torch.hash_tensor(tensor))
    return xxhash.xxh3_64_intdigest(bits(tensor.contiguous()).numpy().data)


def bits(tensor: Tensor) -> Tensor:
    """A flat view as whole numbers: NaNs compare, and numpy knows no bfloat16."""
    whole = torch.int32 if tensor.element_size() == 4 else torch.int16
    return tensor.reshape(-1).view(whole)


def combined(hashes: Iterable[int]) -> str:
    """One hash of many."""
    digest = xxhash.xxh3_64()
    for value in hashes:
        digest.update(value.to_bytes(8, "little"))
    return digest.hexdigest()
