"""What autograd keeps of the real module is what the plan says, tensor by tensor added up."""

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from electra_dist.config.accounting import vocab_size
from electra_dist.config.activations import FP32, activation_stages
from electra_dist.config.memory import memory_of_rank
from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import BatchConfig, EngineConfig, RunConfig
from electra_dist.config.zero import ZeroSettings
from electra_dist.engine.reference import DTYPES
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from tests.variants import SPECIAL_IDS, VARIANTS, variant_of

NUM_ROWS = 1


def config_of(recipe: str, variant: str = "electra", dropout: float = 0.1) -> RunConfig:
    run = variant_of(RECIPES[recipe](), variant)
    model = replace(
        run.model,
        vocab_size=vocab_size(run),
        num_layers=2,
        generator_num_layers=3,
        hidden_dropout=dropout,
        attention_dropout=dropout,
    )
    return replace(
        run,
        model=model,
        batch=BatchConfig(global_batch_size=NUM_ROWS, micro_batch_size=NUM_ROWS),
        engine=EngineConfig(kind="reference"),
    )


def full_rows(config: RunConfig) -> Batch:
    """Rows without padding whose masked slots are all used."""
    length, slots = config.data.sequence_length, config.max_masked
    num_rows = config.batch.micro_batch_size
    ids_BL = (torch.arange(length) + 5).repeat(num_rows, 1)
    return Batch(
        input_ids_BL=ids_BL,
        masked_ids_BL=ids_BL.clone(),
        token_type_ids_BL=torch.zeros_like(ids_BL),
        attention_mask_BL=None,
        masked_positions_BN=torch.arange(slots).repeat(num_rows, 1),
        masked_weights_BN=torch.ones(num_rows, slots),
        uniforms_BN=torch.full((num_rows, slots), 0.5),
    )


def kept_bytes(config: RunConfig, batch: Batch | None = None) -> int:
    """Floating-point memory that is alive between the forward and the backward pass."""
    model, batch = JointElectra(config, SPECIAL_IDS), batch or full_rows(config)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive: dict[int, Tensor] = {}

    def remember(tensor: Any) -> Any:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights and tensor.is_floating_point():
            alive[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        losses = model(batch)
    for result in losses:
        if isinstance(result, Tensor):
            remember(result)
    return sum(tensor.untyped_storage().nbytes() for tensor in alive.values())


@pytest.mark.parametrize("dropout", [0.1, 0.0])
@pytest.mark.parametrize("variant", ["electra", "mlm"])
@pytest.mark.parametrize("recipe", ["tiny", "small", "base"])
def test_activations_are_what_autograd_keeps(recipe: str, variant: str, dropout: float) -> None:
    config = config_of(recipe, variant, dropout)
    predicted = sum(stage.kept for stage in activation_stages(config, "cpu"))
    assert predicted == pytest.approx(kept_bytes(config), rel=0.01)


@pytest.mark.parametrize("variant", list(VARIANTS)[2:])
def test_activations_of_other_objectives_and_towers_are_what_autograd_keeps(variant: str) -> None:
    config = config_of("tiny", variant)
    predicted = sum(stage.kept for stage in activation_stages(config, "cpu"))
    assert predicted == pytest.approx(kept_bytes(config), rel=0.01)


@pytest.mark.parametrize("variant", ["electra", "electric", "modern"])
def test_activations_of_packed_rows_are_what_autograd_keeps(variant: str) -> None:
    """Masks that attention keeps and, of `modern`, angles by row."""
    config = config_of("tiny", variant, dropout=0.0)
    config = replace(
        config,
        data=replace(config.data, packing="packed"),
        batch=BatchConfig(global_batch_size=3, micro_batch_size=3),
    )
    length = config.data.sequence_length
    blocks_BL = (torch.arange(length) // 40 + 1).repeat(3, 1)
    batch = full_rows(config)._replace(
        block_ids_BL=blocks_BL, position_ids_BL=torch.arange(length).repeat(3, 1) % 40
    )
    predicted = sum(stage.kept for stage in activation_stages(config, "cpu"))
    assert predicted == pytest.approx(kept_bytes(config, batch), rel=0.01)


def most_bytes_of_a_forward_pass(config: RunConfig) -> int:
    """Memory when most of it is held, by torch's own record of what it takes and gives back."""
    model = JointElectra(config, SPECIAL_IDS).to(DTYPES[config.engine.precision])
    batch = full_rows(config)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as record:
        losses = model(batch)
    assert losses.total.requires_grad
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


OTHER_DRAWS = {"temperature": 2.0, "disallow_correct": True, "sampling_dropout": False}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("objective", "knobs"),
    [
        *(("electra", {}), ("mlm", {}), ("electric", {})),
        *(("electra", {name: value}) for name, value in OTHER_DRAWS.items()),
        ("electra", OTHER_DRAWS),
    ],
)
def test_the_most_that_a_forward_pass_holds(
    objective: str, knobs: dict[str, Any], precision: Any
) -> None:
    config = config_of("small", objective)
    config = replace(
        config,
        objective=replace(config.objective, **knobs),
        engine=replace(config.engine, precision=precision),
    )
    predicted, kept = 0, 0
    for stage in activation_stages(config, "cpu"):
        predicted = max(predicted, kept + stage.kept + stage.forward)
        kept += stage.kept
    assert predicted == pytest.approx(most_bytes_of_a_forward_pass(config), rel=0.01)


def test_a_gpu_keeps_less_of_attention_and_dropout() -> None:
    config = config_of("base")
    cpu, cuda = (activation_stages(config, device) for device in ("cpu", "cuda"))
    assert sum(s.kept for s in cuda) < 0.8 * sum(s.kept for s in cpu)


def test_checkpointing_keeps_a_layers_output_alone() -> None:
    run = config_of("base")
    again = replace(run, engine=replace(run.engine, activation_checkpointing=True))
    plain, less = (activation_stages(config, "cpu") for config in (run, again))
    assert [s.kept for s in less[4:]] != [s.kept for s in plain[4:]]
    assert less[-2].kept == NUM_ROWS * 512 * 768 * FP32
    assert less[-2].backward == plain[-2].backward + plain[-2].kept - less[-2].kept
    assert (less[0], less[-1]) == (plain[0], plain[-1])


def test_state_is_sharded_as_the_stage_says() -> None:
    base = RECIPES["base"]()
    saved, total = 119_386_427, 119_386_427 + 6 * 768  # with the padding of the word table

    def held(stage: int, world_size: int) -> dict[str, int]:
        config = replace(base, engine=EngineConfig(zero_stage=stage))  # type: ignore[arg-type]
        memory = memory_of_rank(config, world_size=world_size, device="cuda", zero=ZeroSettings())
        return {"optimizer": memory.optimizer, "saves": memory.checkpoint_buffers}

    for stage in range(4):
        share = total if stage == 0 else total / 8
        assert held(stage, 8)["optimizer"] == pytest.approx(2 * FP32 * share, rel=1e-6)
        assert held(stage, 8)["saves"] == pytest.approx(2 * 3 * FP32 * saved / 8, rel=1e-6)


def test_more_rows_at_once_need_as_much_more() -> None:
    one, two = (
        memory_of_rank(
            replace(
                RECIPES["small"](),
                batch=BatchConfig(global_batch_size=128, micro_batch_size=size),
                engine=EngineConfig(kind="reference"),
            ),
            world_size=1,
            device="cpu",
        )
        for size in (16, 32)
    )
    assert two.activations == pytest.approx(2 * one.activations, rel=0.01)
    assert two.weights == one.weights
