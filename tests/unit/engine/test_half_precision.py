"""The reference engine in bf16 and fp16: rounded weights to compute with, fp32 ones to update."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from electra_dist.config.schema import RunConfig
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.protocol import StepOptions
from electra_dist.engine.reference import DTYPES, ReferenceEngine
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.world import World

MakeMicroBatch = Callable[..., MicroBatch]
WORLD = World.from_environment({})
HALVES = ["bf16", "fp16"]


def engine_of(config: RunConfig, precision: str) -> ReferenceEngine:
    engine = replace(config.engine, precision=precision)  # type: ignore[arg-type]
    config = replace(config, engine=engine)
    return ReferenceEngine(JointElectra(config), config, WORLD, torch.device("cpu"))


@pytest.fixture
def passes(config: RunConfig, make_micro_batch: MakeMicroBatch) -> list[MicroBatch]:
    return [make_micro_batch(config, index, is_padded=index == 3) for index in range(4)]


@pytest.mark.parametrize("precision", HALVES)
def test_what_is_updated_and_saved_is_fp32_and_what_computes_is_its_rounding(
    precision: str, config: RunConfig, passes: list[MicroBatch]
) -> None:
    engine, exact = engine_of(config, precision), engine_of(config, "fp32")
    start = {f.parameter: f.values.clone() for f in exact.local_fragments() if f.kind == "master"}
    for _ in range(3):
        found, wanted = engine.step(passes, 1e-3), exact.step(passes, 1e-3)
        assert found.sums["loss"] == pytest.approx(wanted.sums["loss"], rel=0.03)
        assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=0.1)
    assert {p.dtype for p in engine.module.parameters()} == {DTYPES[precision]}
    for fragment in engine.local_fragments():
        assert fragment.values.dtype == torch.float32
        if fragment.kind == "master":
            rounded = fragment.values.to(DTYPES[precision])
            weights = engine.module.get_parameter(fragment.parameter).view(-1)
            assert torch.equal(weights[: len(rounded)], rounded)
            assert not weights[len(rounded) :].any()  # rows that pad the word table
    # Updates are far below what fp16 and bf16 can add to a weight of 1; masters keep them.
    moved = [f for f in engine.local_fragments() if f.parameter.endswith("layer_norm.weight")]
    assert any(
        0 < (f.values - start[f.parameter]).abs().max() < 0.02 for f in moved if f.kind == "master"
    )


@pytest.mark.parametrize("precision", HALVES)
def test_restored_masters_are_what_the_next_step_computes_with(
    precision: str, config: RunConfig, passes: list[MicroBatch]
) -> None:
    engine, other = engine_of(config, precision), engine_of(config, precision)
    engine.step(passes, 1e-3)
    for source, target in zip(engine.local_fragments(), other.local_fragments(), strict=True):
        target.values.copy_(source.values)
    other.state_restored()
    assert engine.step(passes, 1e-3) == other.step(passes, 1e-3)
    for one, two in zip(engine.local_fragments(), other.local_fragments(), strict=True):
        assert torch.equal(one.values, two.values)


def test_a_loss_scale_changes_nothing_but_what_would_vanish_or_overflow(
    config: RunConfig, passes: list[MicroBatch]
) -> None:
    norms = [
        engine_of(config, "fp16")
        .step(passes, 1e-3, options=StepOptions(loss_scale=scale))
        .grad_norm
        for scale in (2.0**6, 2.0**8, 2.0**32)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert math.isnan(norms[2])


def test_in_fp32_a_power_of_two_scales_without_a_trace(
    config: RunConfig, passes: list[MicroBatch]
) -> None:
    plain, scaled = engine_of(config, "fp32"), engine_of(config, "fp32")
    plain.step(passes, 1e-3)
    scaled.step(passes, 1e-3, options=StepOptions(loss_scale=2.0**12))
    for one, two in zip(plain.local_fragments(), scaled.local_fragments(), strict=True):
        assert torch.equal(one.values, two.values)
