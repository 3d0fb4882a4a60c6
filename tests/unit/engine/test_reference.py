import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from electra_dist.config.schema import BatchConfig, ModelConfig, RunConfig
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.protocol import to_batch
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.model.padding import stored_shapes
from electra_dist.runtime.world import World

CPU = torch.device("cpu")
WORLD = World.from_environment({})
MakeMicroBatch = Callable[..., MicroBatch]
State = dict[tuple[str, str], Tensor]


@pytest.fixture
def step_of_four(config: RunConfig, make_micro_batch: MakeMicroBatch) -> list[MicroBatch]:
    return [make_micro_batch(config, index, is_padded=index == 3) for index in range(4)]


def engine_of(config: RunConfig, **arguments: object) -> ReferenceEngine:
    return ReferenceEngine(JointElectra(config), config, WORLD, CPU, **arguments)  # type: ignore[arg-type]


def state_of(engine: ReferenceEngine) -> State:
    return {(f.parameter, f.kind): f.values.clone() for f in engine.local_fragments()}


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(values, wanted[name]) for name, values in found.items())


def test_a_step_over_four_micro_batches_is_one_step_on_the_mean_of_all_rows(
    config: RunConfig, make_micro_batch: MakeMicroBatch
) -> None:
    parts = [make_micro_batch(config, index, is_padded=False) for index in range(4)]
    accumulated = engine_of(config)
    result = accumulated.step(parts, 1e-3)

    batches = [to_batch(part, config.seed, CPU) for part in parts]
    joined = Batch(
        input_ids_BL=torch.cat([b.input_ids_BL for b in batches]),
        masked_ids_BL=torch.cat([b.masked_ids_BL for b in batches]),
        token_type_ids_BL=torch.cat([b.token_type_ids_BL for b in batches]),
        attention_mask_BL=None,
        masked_positions_BN=torch.cat([b.masked_positions_BN for b in batches]),
        masked_weights_BN=torch.cat([b.masked_weights_BN for b in batches]),
        uniforms_BN=torch.cat([b.uniforms_BN for b in batches]),
    )
    whole = replace(config, batch=BatchConfig(global_batch_size=8, micro_batch_size=8))
    at_once = engine_of(whole, make_batch=lambda *_: joined)
    at_once_result = at_once.step([make_micro_batch(whole, is_padded=False)], 1e-3)

    assert result.grad_norm == pytest.approx(at_once_result.grad_norm, rel=1e-5)
    for name in ("loss", "generator_loss", "discriminator_loss", "replaced_share"):
        assert result.sums[name] / 4 == pytest.approx(at_once_result.sums[name], rel=1e-5)
    wanted = state_of(at_once)
    for (name, kind), values in state_of(accumulated).items():
        scale = wanted[name, kind].abs().max().item()
        # Without bias correction and at a tiny gradient, rounding shows in the weights: 1e-3 is
        # the rate, so a hundredth of a step.
        tolerance = 1e-5 if kind == "master" else 1e-4 * scale
        torch.testing.assert_close(values, wanted[name, kind], rtol=0, atol=tolerance)


def test_gradients_do_not_stay_for_the_next_step(
    config: RunConfig, step_of_four: list[MicroBatch]
) -> None:
    engine = engine_of(config)
    first = engine.step(step_of_four, 0.0)
    again = engine.step(step_of_four, 0.0)
    assert again.grad_norm == first.grad_norm
    assert again.sums == first.sums


def test_a_pass_that_only_keeps_a_rank_in_step_changes_nothing(
    config: RunConfig, step_of_four: list[MicroBatch]
) -> None:
    calm, padded = engine_of(config), engine_of(config)
    wanted = calm.step(step_of_four, 1e-3)
    repeated = replace(step_of_four[-1], is_real=False)
    found = padded.step([*step_of_four, repeated], 1e-3)
    assert found == wanted
    assert_same(state_of(padded), state_of(calm))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_moments(
    poison: float, config: RunConfig, step_of_four: list[MicroBatch]
) -> None:
    model = JointElectra(config)
    engine = ReferenceEngine(model, config, WORLD, CPU)
    engine.step(step_of_four, 1e-3)
    before = state_of(engine)

    def poisoned(gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, poison)

    hook = model.generator.head.bias.register_hook(poisoned)
    result = engine.step(step_of_four, 1e-3)
    assert not math.isfinite(result.grad_norm)
    assert_same(state_of(engine), before)

    hook.remove()
    result = engine.step(step_of_four, 1e-3)
    assert math.isfinite(result.grad_norm)
    after = state_of(engine)
    assert all(values.isfinite().all() for values in after.values())
    name = ("discriminator.head.out.weight", "master")
    assert not torch.equal(after[name], before[name])


def test_equal_steps_give_equal_bits_and_dropout_is_keyed_by_the_micro_batch(
    config: RunConfig, make_micro_batch: MakeMicroBatch
) -> None:
    config = replace(
        config,
        model=replace(config.model, hidden_dropout=0.3, attention_dropout=0.3),
        batch=BatchConfig(global_batch_size=2, micro_batch_size=2),
    )
    micro_batch = make_micro_batch(config, 0, is_padded=False)
    first, again = engine_of(config), engine_of(config)
    first.step([micro_batch], 1e-3)
    torch.rand(100)
    again.step([micro_batch], 1e-3)
    assert_same(state_of(again), state_of(first))
    batch = to_batch(micro_batch, config.seed, CPU)
    norms = {
        engine_of(config, make_batch=lambda *_: batch)
        .step([replace(micro_batch, step=step, index=index)], 1e-3)
        .grad_norm
        for step, index in ((0, 0), (0, 1), (1, 0))
    }
    assert len(norms) == 3


def test_fragments_are_views_of_all_weights_and_both_moments(
    config: RunConfig, step_of_four: list[MicroBatch]
) -> None:
    model = JointElectra(config)
    engine = ReferenceEngine(model, config, WORLD, CPU)
    shapes = stored_shapes(model)
    assert shapes["embeddings.word.weight"] == (60, 32)  # of 64 rows
    assert engine.parameter_shapes == shapes
    fragments = list(engine.local_fragments())
    kinds = {"master", "exp_avg", "exp_avg_sq"}
    assert {(f.parameter, f.kind) for f in fragments} == {(n, k) for n in shapes for k in kinds}
    for fragment in fragments:
        assert fragment.start == 0
        assert fragment.values.shape == (math.prod(shapes[fragment.parameter]),)
        assert fragment.values.dtype == torch.float32

    # What is written into them is what the engine goes on from.
    engine.step(step_of_four, 1e-3)
    other = engine_of(config)
    for source, target in zip(engine.local_fragments(), other.local_fragments(), strict=True):
        target.values.copy_(source.values)
    other.state_restored()
    engine.step(step_of_four, 1e-3)
    other.step(step_of_four, 1e-3)
    assert_same(state_of(other), state_of(engine))


@pytest.mark.parametrize("world_size", [1, 3, 64])
def test_what_ranks_save_covers_every_element_once(world_size: int, config: RunConfig) -> None:
    model = JointElectra(config)
    counts = {
        (name, kind): torch.zeros(math.prod(shape), dtype=torch.int64)
        for name, shape in stored_shapes(model).items()
        for kind in ("master", "exp_avg", "exp_avg_sq")
    }
    for rank in range(world_size):
        world = replace(
            WORLD, rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size
        )
        for fragment in ReferenceEngine(model, config, world, CPU).owned_fragments():
            assert len(fragment.values) > 0
            stop = fragment.start + len(fragment.values)
            counts[fragment.parameter, fragment.kind][fragment.start : stop] += 1
            if fragment.kind == "master":
                whole = model.get_parameter(fragment.parameter).flatten()
                assert torch.equal(fragment.values, whole[fragment.start : stop])
    assert all((count == 1).all() for count in counts.values())


def test_evaluation_has_no_dropout_and_leaves_no_trace(
    config: RunConfig, make_micro_batch: MakeMicroBatch, step_of_four: list[MicroBatch]
) -> None:
    wet: ModelConfig = replace(config.model, hidden_dropout=0.5, attention_dropout=0.5)
    config = replace(config, model=wet)
    engine, calm = engine_of(config), engine_of(config)
    batch = to_batch(make_micro_batch(config, 9, is_padded=True), config.seed, CPU)
    first, again = engine.evaluate(batch), engine.evaluate(batch)
    assert not first.total.requires_grad
    assert first.total == again.total
    assert engine.step(step_of_four, 1e-3) == calm.step(step_of_four, 1e-3)
    assert_same(state_of(engine), state_of(calm))
