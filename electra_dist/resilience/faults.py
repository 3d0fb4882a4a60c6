"""Faults on purpose, for tests and drills: ELECTRA_DIST_FAULTS says which, where and when.

    kill rank=1 step=7; slow rank=2 step=3:9 phase=data seconds=0.1; nan position=4711

    kill    rank step            SIGKILL to the rank
    stop    rank step            SIGSTOP: it lives and does nothing
    hang    rank step            it sleeps for ever
    slow    rank step seconds    it sleeps so long
    nan     position, or rank step    a loss is multiplied by `factor` (left out: NaN)
    flip    rank step            a bit of a weight flips; in phase=save of the newest checkpoint
    enospc  rank step            a save of the rank finds the disk full

Steps count from 1, as in metrics.jsonl. A fault fires once, on entering its phase (`data` if none
is given) in its step or, where that step has no such phase, in the first later one that has.
`slow` fires in each step of `step=A:B` (B left out), once in each.

`nan position=P` is a poisoned row: whichever rank computes global position P, in every attempt, in
replays and after roll-backs, until P is skipped. `nan rank= step=` is a glitch: the first pass of
the step, and nothing when the step is replayed.

`attempt=N` names the attempt, `attempt=any` all of them. Left out, a poisoned row and `slow` are in
all, the others in attempt 1: a run that is started again gets through.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from electra_dist.checkpoint.layout import list_checkpoints
from electra_dist.config import variables
from electra_dist.data.stream import MicroBatch
from electra_dist.errors import UserError
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.phases import PHASES, Current

log = logging.getLogger(__name__)

ANYWHERE = {"rank", "step", "phase", "attempt"}
KEYS = {
    "kill": ANYWHERE,
    "stop": ANYWHERE,
    "hang": ANYWHERE,
    "slow": ANYWHERE | {"seconds"},
    "nan": {"rank", "step", "attempt", "position", "factor"},
    "flip": ANYWHERE,
    "enospc": {"rank", "step", "attempt"},
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault as it was declared."""

    words: str
    """The declaration itself."""
    kind: str
    rank: int | None = None
    """None: a poisoned row, which any rank may compute."""
    first_step: int = 0
    end_step: int | None = None
    """Exclusive, of `slow`; None: `first_step` or the first possible one after it, once."""
    phase: str = "data"
    attempt: int | None = 1
    """None: all."""
    seconds: float = 0.0
    position: int | None = None
    factor: float = math.nan


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Read a declaration; nothing of it is passed over.

    Raises:
        UserError: it is wrong.
    """
    return tuple(_parse(part.strip()) for part in text.split(";") if part.strip())


def _parse(words: str) -> Fault:
    kind, *pairs = words.split()
    if kind not in KEYS:
        raise _mistake(words, f"{kind!r} is none of {', '.join(KEYS)}")
    given: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in KEYS[kind] or name in given:
            raise _mistake(words, f"{pair!r} does not fit; once each: {_names(KEYS[kind])}")
        given[name] = value
    is_poison = "position" in given
    needed = {"position"} if is_poison else {"rank", "step"}
    needed |= {"seconds"} if kind == "slow" else set()
    excess = given.keys() & {"rank", "step"} if is_poison else set()
    if needed - given.keys() or excess:
        raise _mistake(words, f"it needs {_names(needed)}" + (" alone" if excess else ""))
    values: dict[str, Any] = {"words": words, "kind": kind}
    if is_poison or kind == "slow":
        values["attempt"] = None
    for name, value in given.items():
        try:
            values |= _value(kind, name, value)
        except ValueError:
            raise _mistake(words, f"{name}={value} can't be read") from None
    return Fault(**values)


def _value(kind: str, name: str, value: str) -> dict[str, Any]:
    """The fields that `name=value` fills."""
    if name == "step":
        first, colon, end = value.partition(":")
        if colon and (kind != "slow" or int(end) <= int(first)):
            raise ValueError(value)
        end_step = int(end) if colon else int(first) + 1
        return {"first_step": _natural(first), "end_step": end_step if kind == "slow" else None}
    if name == "phase":
        if value not in PHASES:
            raise ValueError(value)
        return {"phase": value}
    if name == "attempt":
        return {"attempt": None if value == "any" else _natural(value)}
    if name == "factor":
        return {"factor": float(value)}
    if name == "seconds":
        if not 0 < float(value) < math.inf:
            raise ValueError(value)
        return {"seconds": float(value)}
    return {name: _natural(value)}


def _natural(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(value)
    return int(value)


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _mistake(words: str, what: str) -> UserError:
    return UserError(
        f"{variables.FAULTS} holds {words!r}: {what}; correct it, or unset the variable "
        f"(phases: {', '.join(PHASES)})"
    )


class Faults:
    """Those of one rank in one attempt.

    Args:
        faults: as declared, for all ranks and attempts.
        rank: this one.
        attempt: this one.
        module: what the rank computes with.
    """

    def __init__(
        self,
        faults: tuple[Fault, ...],
        rank: int,
        attempt: Attempt,
        module: nn.Module,
    ) -> None:
        mine = [
            fault
            for fault in faults
            if fault.rank in (None, rank) and fault.attempt in (None, attempt.number)
        ]
        self._run_folder, self._module = attempt.run_folder, module
        self._timed = [f for f in mine if f.kind not in ("nan", "enospc")]
        self._full_disk = [f for f in mine if f.kind == "enospc"]
        self._glitches = [f for f in mine if f.kind == "nan" and f.position is None]
        self._poison = {f.position: f for f in mine if f.position is not None}
        self._last_slow: dict[Fault, int] = {}

    def entered(self, current: Current) -> None:
        """React to a phase that the main thread has entered."""
        if not self._timed:
            return
        for fault in [f for f in self._timed if _is_due(f, current)]:
            if fault.end_step is None:
                self._timed.remove(fault)
            elif self._last_slow.get(fault) == current.step:
                continue
            self._last_slow[fault] = current.step
            log.warning("a fault on purpose in step %d: %s", current.step, fault.words)
            self._fire(fault)

    def disturbed(
        self,
        micro_batches: list[MicroBatch],
        step: int,
        positions_of: Callable[[int], NDArray[np.int64]],
    ) -> list[MicroBatch]:
        """The passes of a step, with what is declared to happen to their losses.

        Args:
            micro_batches: of this rank.
            step: counted from 1.
            positions_of: the global positions of the micro-batch of an index.
        """
        if not (self._glitches or self._poison):
            return micro_batches
        return [
            replace(one, disturb=self._disturbance(step, positions_of(one.index).tolist()))
            if one.is_real
            else one
            for one in micro_batches
        ]

    def _disturbance(self, step: int, positions: list[int]) -> Callable[[Any], Any] | None:
        for position in positions:
            if position in self._poison:
                poison = self._poison[position]
                log.warning("a fault on purpose in step %d: %s", step, poison.words)
                return lambda losses: times(losses, poison.factor)
        for fault in self._glitches:
            if step >= fault.first_step:
                self._glitches.remove(fault)
                log.warning("a fault on purpose in step %d: %s", step, fault.words)
                factors = [fault.factor]
                return lambda losses: times(losses, factors.pop()) if factors else losses
        return None

    def before_write(self, step: int) -> None:
        """What a writer of the checkpoint of `step` meets before its first byte.

        Raises:
            OSError: a full disk, if one is declared.
        """
        for fault in [f for f in self._full_disk if step >= f.first_step]:
            self._full_disk.remove(fault)
            log.warning("a fault on purpose in the save of step %d: %s", step, fault.words)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _fire(self, fault: Fault) -> None:
        if fault.kind == "flip" and fault.phase == "save":
            flip_a_bit_of_the_newest_checkpoint(self._run_folder)
        elif fault.kind == "flip":
            flip_a_weight(self._module)
        elif fault.kind == "slow":
            time.sleep(fault.seconds)
        elif fault.kind == "hang":
            while True:
                time.sleep(3600.0)
        else:
            os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)


def _is_due(fault: Fault, current: Current) -> bool:
    is_in_time = fault.end_step is None or current.step < fault.end_step
    return fault.phase == current.phase and fault.first_step <= current.step and is_in_time


def times(losses: Any, factor: float) -> Any:
    """Losses whose total, which is reported and goes into the gradient, is multiplied."""
    return losses._replace(total=losses.total * factor)


@torch.no_grad()
def flip_a_weight(module: nn.Module) -> None:
    """Flip the highest bit of the mantissa of one weight that this rank computes with."""
    weights = next(p for p in module.parameters() if p.numel())
    first = weights.detach().view(-1)[:1]
    if first.dtype == torch.float32:
        first.view(torch.int32).bitwise_xor_(1 << 22)
    else:
        first.view(torch.int16).bitwise_xor_(1 << 6)


def flip_a_bit_of_the_newest_checkpoint(run_folder: Path) -> None:
    """In the middle of its largest shard, as a bad disk would."""
    complete = list_checkpoints(run_folder)
    if not complete:
        log.warning("there is no complete checkpoint: no bit flips")
        return
    shard = max(
        complete[-1].folder.glob("shard_*.safetensors"), key=lambda path: path.stat().st_size
    )
    with shard.open("r+b") as file:
        middle = shard.stat().st_size // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))
