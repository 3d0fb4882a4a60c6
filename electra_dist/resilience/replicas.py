"""Do ranks still hold the same bits where they should? Hashes compared, the odd one out named.

With three ranks or more a majority names it. With two nobody can tell at once: the attempt ends,
the next one makes the same steps again (a step is arithmetic), and the rank whose hash that gives
was right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
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
    hashes: tuple[str, ...]
    """Of all shared tensors, by rank."""


@dataclass(frozen=True, kw_only=True)
class OpenCase:
    """A disagreement of an earlier attempt that had no majority: a replay decides it."""

    step: int
    hashes: tuple[str, ...]
    """By rank."""


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

    def compare(self) -> tuple[str, Disagreement | None]:
        """The hash of all shared tensors on this rank, and what differs. Collective."""
        of_tensors = {name: tensor_hash(tensor) for name, tensor in self._engine.shared_tensors()}
        own = combined(of_tensors.values())
        hashes = self._control.all_gather_objects(own, name="hashes of replicas")
        if len(set(hashes)) == 1:
            return own, None
        by_rank = self._control.all_gather_objects(
            list(of_tensors.values()), name="hashes of tensors"
        )
        differing = tuple(
            name
            for name, found in zip(of_tensors, zip(*by_rank, strict=True), strict=True)
            if len(set(found)) > 1
        )
        return own, Disagreement(ranks=odd_ranks(hashes), tensors=differing, hashes=tuple(hashes))


def odd_ranks(hashes: Sequence[str]) -> tuple[int, ...]:
    """Ranks that differ from more than half of all; none where no hash has that many."""
    [(value, count)] = Counter(hashes).most_common(1)
    if 2 * count <= len(hashes):
        return ()
    return tuple(rank for rank, found in enumerate(hashes) if found != value)


def wrong_ranks(case: OpenCase, replayed: str) -> tuple[int, ...] | None:
    """Ranks whose recorded hash a replay did not give; None if it gave nobody's."""
    if replayed not in case.hashes:
        return None
    return tuple(rank for rank, found in enumerate(case.hashes) if found != replayed)


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
    return OpenCase(step=newest["step"], hashes=tuple(newest["hashes"]))


def tensor_hash(tensor: Tensor) -> int:
    """64 bits of a tensor's bits; on a CUDA device by an XOR there, which any one flip changes."""
    tensor = tensor.detach()
    if tensor.device.type == "cuda":
        return int(torch.hash_tensor(tensor))
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return xxhash.xxh3_64_intdigest(flat.numpy().data)


def combined(hashes: Iterable[int]) -> str:
    """One hash of many."""
    digest = xxhash.xxh3_64()
    for value in hashes:
        digest.update(value.to_bytes(8, "little"))
    return digest.hexdigest()
