import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.checkpoint.store import WriterSigns
from electra_dist.config import files
from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import ScheduleConfig
from electra_dist.engine.protocol import LocalResult
from electra_dist.engine.scaling import LossScale
from electra_dist.errors import Superseded
from electra_dist.resilience.guard import decide
from electra_dist.runtime.control import Control
from electra_dist.runtime.world import World
from electra_dist.train.loop import learning_rate
from electra_dist.train.state import RunState
from electra_dist.train.step import agree

Reduce = Callable[[list[float], str], list[float]]


class Exchange:
    """A control whose sum over ranks is `reduce`."""

    def __init__(self, reduce: Reduce) -> None:
        self._reduce = reduce
        self.world_size = 4

    def all_reduce_sum(self, values: list[float], name: str) -> list[float]:
        return self._reduce(list(values), name)


def a_run(step: int = 0, reduce: Reduce | None = None, **more: Any) -> Any:
    """What the functions of the loop look at: a config, a state, a control and two stop flags."""
    world = World.from_environment({})
    control = Control(group=None, store=None, world=world, timeout_seconds=1.0)
    return SimpleNamespace(
        config=more.get("config", RECIPES["tiny"]()),
        state=RunState(step=step, position=32 * step),
        control=Exchange(reduce) if reduce else control,
        stop_signals=SimpleNamespace(received=more.get("received")),
        time_signs=lambda: more.get("time", (0.0, 0.0)),
        stop_file_exists=lambda: more.get("asked", False),
        store=SimpleNamespace(signs=lambda: WriterSigns(*more.get("writer", (0.0, 0.0, 0.0)))),
        loss_scale=more.get("loss_scale"),
        attempt=SimpleNamespace(superseded=lambda: Superseded("a later attempt")),
    )


def local(checksum: int = 5, **sums: float) -> LocalResult:
    plain = {
        "loss": 40.0,
        "generator_loss": 8.0,
        "discriminator_loss": 0.5,
        "replaced_share": 0.25,
        "tokens": 512.0,
    }
    return LocalResult(sums={**plain, **sums}, checksum=checksum, grad_norm=1.5)


def test_the_first_update_has_rate_0_and_the_peak_comes_after_the_warm_up() -> None:
    config = replace(RECIPES["tiny"](), schedule=ScheduleConfig(num_steps=1000, warmup_steps=100))
    rates = [learning_rate(a_run(step, config=config)) for step in range(1001)]
    assert rates[0] == 0.0
    assert rates[-1] == 0.0
    assert rates.index(max(rates)) == 100
    # Warm-up and decay multiply, so the peak is a tenth under the rate that was asked for.
    assert rates[100] == pytest.approx(0.9 * config.optim.learning_rate)
    for step, rate in enumerate(rates):
        expected = config.optim.learning_rate * (1 - step / 1000) * min(1.0, step / 100)
        assert rate == pytest.approx(expected, abs=1e-18)


def test_a_step_reports_means_over_its_micro_batches() -> None:
    result = agree(a_run(), local())
    # The tiny recipe has 32 / 8 = 4 micro-batches a step; tokens are counted, not averaged.
    assert (result.loss, result.generator_loss, result.discriminator_loss) == (10.0, 2.0, 0.125)
    assert (result.replaced_share, result.tokens, result.grad_norm) == (0.0625, 512.0, 1.5)
    assert not result.stop_signalled
    assert not result.stop_asked
    signs = result.signs(7, True)
    assert (signs.step, signs.loss, signs.grad_norm) == (7, 10.0, 1.5)
    assert (signs.writer_busy, signs.save_overdue) == (False, True)


@pytest.mark.parametrize(
    ("objective", "absent"),
    [
        ("electra", set()),
        ("electric", set()),
        ("mlm", {"discriminator_loss", "replaced_share"}),
        ("uniform_generator", {"generator_loss"}),
    ],
)
def test_a_tower_that_is_not_there_has_no_metrics(objective: str, absent: set[str]) -> None:
    config = files.load(None, ["--objective.name", objective], recipe="tiny")
    run = a_run(config=config)
    names = agree(run, local()).metrics(run, 1e-3).keys()
    figures = {"loss", "generator_loss", "discriminator_loss", "replaced_share"}
    assert figures - names == absent


def test_the_sums_of_all_ranks_are_those_of_one_message() -> None:
    names: list[str] = []

    def four_ranks(values: list[float], name: str) -> list[float]:
        names.append(name)
        return [4 * value for value in values]

    result = agree(a_run(11, four_ranks), local())
    assert (result.loss, result.tokens, result.grad_norm) == (40.0, 2048.0, 1.5)
    assert names == ["step 12"]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=64))
def test_checksums_of_many_ranks_add_up_modulo_2_to_the_64(checksums: list[int]) -> None:
    def sent(checksum: int) -> list[float]:
        message: list[list[float]] = []

        def keep(values: list[float], _: str) -> list[float]:
            message.append(values)
            return values

        agree(a_run(0, keep), local(checksum))
        return message[0]

    # float64, as the control group adds: no bit of a 64-bit number may be lost on the way.
    totals = [math.fsum(column) for column in zip(*map(sent, checksums), strict=True)]
    result = agree(a_run(0, lambda *_: totals), local())
    assert result.checksum == sum(checksums) % 2**64


def test_one_rank_with_a_signal_stops_all() -> None:
    assert agree(a_run(received="SIGTERM"), local()).stop_signalled
    assert agree(a_run(asked=True), local()).stop_asked

    def others_have_it(values: list[float], _: str) -> list[float]:
        return [*values[:-5], values[-5] + 3.0, values[-4] + 1.0, *values[-3:]]

    result = agree(a_run(0, others_have_it), local())
    assert result.stop_signalled
    assert result.stop_asked


def test_what_one_ranks_writer_says_all_ranks_know() -> None:
    result = agree(a_run(writer=(1.0, 2.0, 0.0)), local())
    assert result.signs(3, False).writer_busy
    assert result.num_failed_saves == 2
    calm = agree(a_run(), local())
    assert not calm.signs(3, False).writer_busy
    assert calm.num_failed_saves == 0

    def another_rank_is_superseded(values: list[float], _: str) -> list[float]:
        return [*values[:-1], values[-1] + 1.0]

    with pytest.raises(Superseded):
        agree(a_run(0, another_rank_is_superseded), local())


def test_a_loss_that_is_no_number_reaches_the_guard() -> None:
    assert math.isnan(agree(a_run(), local(loss=math.nan)).signs(3, False).loss)


@pytest.mark.parametrize(
    ("loss", "grad_norm", "scale", "is_overflow"),
    [
        (40.0, math.nan, 1024.0, True),
        (40.0, 1.5, 1024.0, False),
        (math.nan, math.nan, 1024.0, False),  # the forward pass, which the scale does not touch
        (40.0, math.nan, 1.0, False),  # nothing left to halve
        (40.0, math.nan, None, False),  # fp32
    ],
)
def test_an_overflow_is_told_from_an_anomaly(
    loss: float, grad_norm: float, scale: float | None, is_overflow: bool
) -> None:
    run = a_run(loss_scale=LossScale(scale=scale, good_steps=7) if scale else None)
    result = agree(run, replace(local(loss=loss), grad_norm=grad_norm))
    assert result.overflowed == is_overflow
    is_healthy = math.isfinite(loss) and math.isfinite(grad_norm)
    assert (result.anomaly is None) == (is_healthy or is_overflow)
    assert result.is_applied == is_healthy
    if is_overflow:
        after = result.advance(run)
        # A step as any other, but for its update: half the scale, and no trace in the window.
        assert (after.step, after.position, after.num_updates) == (1, 32, 0)
        assert after.loss_scale == LossScale(scale=512.0)
        assert after.recent == run.state.recent
        assert decide(run.config, result.signs(1, save_overdue=False)).stop is None
        assert result.metrics(run, 0.1)["loss_scale"] == 1024.0
