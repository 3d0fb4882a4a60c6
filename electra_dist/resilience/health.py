"""Is a step sick, what made it so, and what is to be done: decided on plain values.

    find        a loss or gradient norm that is not finite, or far above those of the last steps
    replay      the same step twice more, nothing applied (by the caller)
    blame       the same both times: the data is bad; else the hardware
    respond     skip the update, roll back, or stop

What is found rests on numbers that all ranks share and on a window of recent ones that is part of
state.json: a resumed run decides as an undisturbed one does. Only sums, products and comparisons
of float64 are taken, so that ranks on other hosts cannot differ in a last bit.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np

from electra_dist.config.running import ResilienceConfig
from electra_dist.data.order import Skips, skipping, unskipped

MAD_TO_DEVIATION = 1.4826
"""The median absolute deviation of normal numbers, times this, is their standard deviation."""
LEAST_DEVIATION = 0.01
"""Of the median: numbers that hardly move must not turn a breath of noise into a spike."""
SAME_SHARE = 0.01
"""Replays this close to the original are the same: on CUDA a sample may flip between two runs."""


Quantity = Literal["loss", "grad_norm"]


class Vitals(NamedTuple):
    """What all ranks know of a step."""

    loss: float
    """Mean over the micro-batches."""
    grad_norm: float


@dataclass(frozen=True, kw_only=True)
class Recent:
    """The newest healthy steps, oldest first."""

    losses: tuple[float, ...] = ()
    grad_norms: tuple[float, ...] = ()

    def after(self, vitals: Vitals, window_steps: int) -> Recent:
        """With one more, and at most `window_steps` of them."""
        return Recent(
            losses=(*self.losses, vitals.loss)[-window_steps:],
            grad_norms=(*self.grad_norms, vitals.grad_norm)[-window_steps:],
        )

    def to_json(self) -> dict[str, Any]:
        """For state.json; JSON keeps every bit of a float."""
        return {"losses": list(self.losses), "grad_norms": list(self.grad_norms)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Recent:
        """Read it back."""
        return cls(losses=tuple(values["losses"]), grad_norms=tuple(values["grad_norms"]))


@dataclass(frozen=True, kw_only=True)
class Anomaly:
    """A step that must not change the weights."""

    quantity: Quantity
    value: float
    limit: float
    """What it may be at most; infinity: any finite value."""

    @property
    def is_spike(self) -> bool:
        """Finite, but too large."""
        return math.isfinite(self.value)

    def words(self) -> str:
        """`loss = 912.4 is above 47.1`."""
        if not self.is_spike:
            return f"{self.quantity} is not finite"
        return f"{self.quantity} = {self.value:.6g} is above {self.limit:.6g}"


class Blame(enum.Enum):
    """What a replay tells."""

    DATA = "data"
    """The same came out again: these micro-batches do it to these weights."""
    HARDWARE = "hardware"
    """Something else came out, though a step is arithmetic."""


class Response(enum.Enum):
    """What the ranks do about an anomaly."""

    SKIP = "skip"
    """The step counts, its update is left out."""
    ROLL_BACK = "rollback"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An anomaly, examined: what all ranks know about it."""

    anomaly: Anomaly
    blame: Blame
    micro_batches: tuple[int, ...]
    """Of the step, the guilty ones."""
    ranks: tuple[int, ...]
    """Who ran them; after `Blame.HARDWARE` those whose own replay differed, if any can be told."""
    response: Response


def find(vitals: Vitals, recent: Recent, config: ResilienceConfig) -> Anomaly | None:
    """What is wrong with a step, if anything; spikes are looked for once the window is full."""
    both: tuple[Quantity, Quantity] = ("loss", "grad_norm")
    limits = spike_limit(recent.losses, config), spike_limit(recent.grad_norms, config)
    found = [
        Anomaly(quantity=quantity, value=value, limit=limit)
        for quantity, value, limit in zip(both, vitals, limits, strict=True)
        if not math.isfinite(value) or value > limit
    ]
    # What is not finite says more than a spike beside it; the loss more than the gradient.
    return min(found, key=lambda anomaly: anomaly.is_spike, default=None)


def spike_limit(past: Sequence[float], config: ResilienceConfig) -> float:
    """Median plus `spike_deviations` robust deviations; infinity before the window is full."""
    if config.spike_deviations is None or len(past) < config.spike_window_steps:
        return math.inf
    middle = median(past)
    deviation = MAD_TO_DEVIATION * median(abs(value - middle) for value in past)
    return middle + config.spike_deviations * max(deviation, LEAST_DEVIATION * abs(middle))


def guilty(losses: Mapping[int, float], anomaly: Anomaly) -> list[int]:
    """Of a rank's micro-batches those whose own loss is not finite, or above the limit of a loss.

    A gradient alone points at none of them: then the whole step is guilty (`intervals`).
    """
    limit = anomaly.limit if anomaly.quantity == "loss" else math.inf
    return sorted(i for i, loss in losses.items() if not math.isfinite(loss) or loss > limit)


def blame(original: Vitals, replays: Iterable[Vitals]) -> Blame:
    """Whether every replay of the step gave what the step gave."""
    same = all(is_same(*pair) for replay in replays for pair in zip(original, replay, strict=True))
    return Blame.DATA if same else Blame.HARDWARE


def is_same(one: float, other: float) -> bool:
    """Both not finite, or equal but for rounding."""
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.isfinite(one) == math.isfinite(other)
    return abs(one - other) <= SAME_SHARE * max(abs(one), abs(other))


def respond(blamed: Blame, num_rollbacks: int, config: ResilienceConfig) -> Response:
    """What to do: no data is left out for the hardware's fault, and roll-backs come to an end.

    Args:
        blamed: what the replay told.
        num_rollbacks: those that the run has made.
        config: the policy.
    """
    if config.on_anomaly == "rollback":
        if num_rollbacks < config.max_rollbacks:
            return Response.ROLL_BACK
    elif config.on_anomaly == "skip" and blamed is Blame.DATA:
        return Response.SKIP
    return Response.STOP


def intervals(
    skips: Skips, micro_batches: Sequence[int], first_position: int, micro_batch_size: int
) -> Skips:
    """Positions [first, last) of micro-batches of the step that began at a used position."""
    ends = []
    for index in micro_batches:
        first = first_position + index * micro_batch_size
        used = np.array([first, first + micro_batch_size - 1], np.int64)
        start, end = (int(position) for position in unskipped(used, skips))
        ends.append((start, end + 1))
    return tuple(ends)


def skips_after(
    skips: Skips, micro_batches: Sequence[int], first_position: int, micro_batch_size: int
) -> Skips:
    """The skips that also leave out these micro-batches of the step that began at a used position.

    From the last one back, for a skip moves all used positions after it.
    """
    for index in sorted(micro_batches, reverse=True):
        first = first_position + index * micro_batch_size
        skips = skipping(skips, first, first + micro_batch_size)
    return skips
