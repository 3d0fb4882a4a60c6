import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from electra_dist.errors import UserError
from electra_dist.resilience import faults
from electra_dist.resilience.faults import Faults, parse_faults
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.phases import Current


def those_of(text: str, rank: int = 1, attempt: int = 1, run: Path = Path("run")) -> Faults:
    here = Attempt.join(run, attempt)
    return Faults(parse_faults(text), rank, here, nn.Linear(3, 2))


def test_a_declaration_is_read() -> None:
    kill, slow, poison = parse_faults(
        "kill rank=1 step=7 phase=optimizer;slow rank=2 step=3:9 seconds=0.1; nan position=4711 ;"
    )
    assert (kill.kind, kill.rank, kill.first_step, kill.phase, kill.attempt) == (
        *("kill", 1, 7),
        *("optimizer", 1),
    )
    assert (slow.first_step, slow.end_step, slow.seconds, slow.attempt) == (3, 9, 0.1, None)
    assert (poison.position, poison.rank, poison.attempt) == (4711, None, None)
    assert math.isnan(poison.factor)
    (second,) = parse_faults("stop rank=0 step=1 attempt=2")
    assert second.attempt == 2
    assert parse_faults("nan position=1 factor=1e4")[0].factor == 1e4
    assert parse_faults("kill rank=0 step=1 attempt=any")[0].attempt is None
    assert parse_faults("") == parse_faults(" ; ") == ()


@pytest.mark.parametrize(
    "words",
    [
        "kil rank=1 step=7",
        "kill rank=1",
        "kill step=7",
        "kill rank=1 step=7 phase=backwards",
        "kill rank=-1 step=7",
        "kill rank=1 step=7:9",
        "kill rank=1 step=7 step=8",
        "kill rank=1 step=7 seconds=3",
        "kill rank=1 step=7 now",
        "kill rank=1, step=7",
        "slow rank=1 step=7",
        "slow rank=1 step=7 seconds=nan",
        "slow rank=1 step=7:7 seconds=1",
        "nan rank=1",
        "nan position=3 rank=1",
        "nan position=3 factor=big",
        "enospc rank=0 step=1 phase=save",
        "kill rank=1 step=7 attempt=first",
    ],
)
def test_a_wrong_declaration_is_the_users_mistake(words: str) -> None:
    with pytest.raises(UserError, match="ELECTRA_DIST_FAULTS") as caught:
        parse_faults(f"hang rank=0 step=2; {words}")
    assert words in str(caught.value)


def fired(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What faults do to the process, noted instead."""
    found: list[tuple[str, float]] = []
    monkeypatch.setattr(faults.os, "kill", lambda _pid, number: found.append((number.name, 0)))
    monkeypatch.setattr(faults.time, "sleep", lambda seconds: found.append(("sleep", seconds)))
    return found


def enter(mine: Faults, *places: tuple[str, int]) -> None:
    for phase, step in places:
        mine.entered(Current(phase, step, 0.0, 1))


def test_a_fault_fires_once_in_its_phase_and_on_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fired(monkeypatch)
    text = "kill rank=1 step=7 phase=forward; stop rank=1 step=2 phase=save; stop rank=2 step=1"
    mine = those_of(text)
    enter(mine, ("forward", 6), ("data", 7))
    assert found == []
    enter(mine, ("forward", 7), ("forward", 7), ("forward", 8))
    assert found == [("SIGKILL", 0)]
    enter(mine, ("save", 8))  # the first save from step 2 on
    assert found == [("SIGKILL", 0), ("SIGSTOP", 0)]
    enter(those_of(text, attempt=2), ("forward", 7), ("save", 8))
    assert len(found) == 2


def test_slow_fires_once_in_each_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fired(monkeypatch)
    mine = those_of("slow rank=1 step=3:5 seconds=0.5", attempt=4)
    enter(mine, *(("data", step) for step in (2, 3, 3, 4, 4, 5, 6)))
    assert found == [("sleep", 0.5), ("sleep", 0.5)]


class Losses(SimpleNamespace):
    def _replace(self, **values: Any) -> "Losses":
        return Losses(**{**vars(self), **values})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Of a micro-batch what a fault looks at."""

    index: int = 0
    is_real: bool = True
    disturb: Callable[[Losses], Losses] | None = None


def losses_of(mine: Faults, step: int, positions: Sequence[int]) -> list[float]:
    """What three passes of one micro-batch report: the step, and its two replays."""
    batch: Any = Batch()
    (one,) = mine.disturbed([batch], step, lambda _: np.array(positions))
    healthy: Any = Losses(total=2.0)
    return [(one.disturb(healthy) if one.disturb else healthy).total for _ in range(3)]


def test_a_poisoned_row_is_sick_in_every_replay_and_every_attempt() -> None:
    for attempt in (1, 2):
        mine = those_of("nan position=11 factor=10", attempt=attempt)
        for step in (3, 3):  # the second time after a roll-back
            assert losses_of(mine, step, [10, 11]) == [20.0] * 3
        assert losses_of(mine, 3, [12, 13]) == [2.0] * 3


def test_a_glitch_is_gone_when_the_step_is_replayed() -> None:
    mine = those_of("nan rank=1 step=3")
    assert losses_of(mine, 2, [0, 1]) == [2.0] * 3
    first, *replays = losses_of(mine, 3, [2, 3])
    assert math.isnan(first)
    assert replays == [2.0, 2.0]
    assert losses_of(mine, 3, [2, 3]) == [2.0] * 3


def test_a_full_disk_fails_one_save() -> None:
    mine = those_of("enospc rank=1 step=5")
    mine.before_write(4)
    with pytest.raises(OSError, match="No space left"):
        mine.before_write(8)
    mine.before_write(8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flip_changes_one_bit_of_one_weight(dtype: torch.dtype) -> None:
    module = nn.Linear(3, 2).to(dtype)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    mine = Faults(parse_faults("flip rank=1 step=1"), 1, Attempt.join(Path("run"), 1), module)
    enter(mine, ("data", 1))
    after = list(module.parameters())
    changed = sum(int((old != new).sum()) for old, new in zip(before, after, strict=True))
    assert changed == 1
    assert all(parameter.isfinite().all() for parameter in after)


def test_a_flip_in_a_save_hits_the_newest_checkpoint(tmp_path: Path) -> None:
    for name, complete in (("step_00000008", True), ("step_00000016", True), ("step_24", False)):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "shard_00000.safetensors").write_bytes(bytes(100))
        if complete:
            (folder / "manifest.json").write_text("{}")
    enter(those_of("flip rank=1 step=20 phase=save", run=tmp_path), ("save", 24))
    sums = {
        path.parent.name: sum(path.read_bytes())
        for path in tmp_path.glob("checkpoints/*/shard_00000.safetensors")
    }
    assert sums == {"step_00000008": 0, "step_00000016": 1, "step_24": 0}
