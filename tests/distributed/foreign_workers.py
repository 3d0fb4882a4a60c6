"""What the ranks of the foreign-format tests do: real DeepSpeed engines save and load folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.checkpoint.universal import export_universal
from electra_dist.config.schema import RunConfig
from electra_dist.engine.deepspeed import DeepSpeedEngine
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.collectives import ProcessGroups
from tests.distributed.engine_workers import CPU
from tests.distributed.synthetic import micro_batches, tiny_config

NUM_STEPS = 2
VARIANTS = ("stage_1", "stage_2", "stage_3", "sub_groups", "bf16")


def config_of(variant: str, folder: Path) -> RunConfig:
    """`sub_groups` is ZeRO-3 with many flat groups and nothing kept gathered."""
    if variant == "bf16":
        return tiny_config(zero_stage=2, precision="bf16")
    if variant == "sub_groups":
        path = folder / "sub_groups.json"
        zero = {"stage": 3, "sub_group_size": 10**5, "stage3_param_persistence_threshold": 0}
        path.write_text(json.dumps({"zero_optimization": zero}))
        return tiny_config(zero_stage=3, deepspeed_config=str(path))
    return tiny_config(zero_stage=int(variant[-1]))


def save_and_load(groups: ProcessGroups, folder: str) -> None:
    """Save each variant with DeepSpeed and with the store; load our export of the first into all.

    ours/VARIANT/checkpoints/step_00000002 and deepspeed/VARIANT hold the same state.
    """
    base = Path(folder)
    for variant in VARIANTS:
        config = config_of(variant, base)
        engine = DeepSpeedEngine(JointElectra(config), config, groups.world, CPU)
        for step in range(NUM_STEPS):
            mine = micro_batches(config, step, groups.world.rank, groups.world.world_size)
            engine.step(mine, 1e-3)
        engine._engine.save_checkpoint(str(base / "deepspeed" / variant))
        attempt = Attempt.join(base / "ours" / variant, 1)
        attempt.folder.mkdir(parents=True, exist_ok=True)
        store = CheckpointStore(
            attempt, groups.control, keep_last=9, commit_timeout_seconds=60, asynchronous=False
        )
        store.save(engine, NUM_STEPS, {"step": NUM_STEPS, "position": 8 * NUM_STEPS})
        assert store.wait()
        store.close()
        engine.close()
    source = base / "ours" / VARIANTS[0] / "checkpoints/step_00000002"
    if groups.world.is_leader:
        export_universal(source, base / "universal")
    groups.control.barrier("export")
    for variant in VARIANTS[:4]:
        _load_universal(groups, config_of(variant, base), base / "universal", source)


def _load_universal(groups: ProcessGroups, config: RunConfig, folder: Path, source: Path) -> None:
    """DeepSpeed's own loading, and every weight and moment afterwards."""
    engine = DeepSpeedEngine(JointElectra(config), config, groups.world, CPU)
    engine._engine._config.load_universal_checkpoint = True
    path, _ = engine._engine.load_checkpoint(str(folder))
    assert path is not None
    assert engine._engine.global_steps == NUM_STEPS
    num_compared = 0
    with CheckpointReader(source) as reader:
        for name, kind, start, values in engine.owned_fragments():
            saved = torch.from_numpy(reader.read_range(name, kind, start, start + len(values)))
            assert torch.equal(saved.view(torch.int32), values.view(torch.int32)), (name, kind)
            num_compared += len(values)
    (compared,) = groups.control.all_reduce_sum([num_compared])
    assert compared == 3 * sum(
        s.numel() for s in map(torch.empty, engine.parameter_shapes.values())
    )
    # And it trains on, each group with its own weight decay.
    assert [g["weight_decay"] for g in engine._zero.param_groups][:1] == [config.optim.weight_decay]
    assert engine._zero.param_groups[-1]["weight_decay"] == 0.0
    engine.step(micro_batches(config, 2, groups.world.rank, groups.world.world_size), 1e-3)
    engine.close()
