"""What the ranks of the foreign-format tests do: real DeepSpeed engines save and load folders."""

from __future__ import annotations

from pathlib import Path

from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.config.schema import RunConfig
from electra_dist.engine.deepspeed import DeepSpeedEngine
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.collectives import ProcessGroups
from tests.distributed.engine_workers import CPU
from tests.distributed.synthetic import micro_batches, tiny_config

NUM_STEPS = 2


def configs(stages: list[int]) -> list[tuple[str, RunConfig]]:
    """A name and a config of each variant: fp32 at every stage, bf16 once."""
    found = [(f"stage_{stage}", tiny_config(zero_stage=stage)) for stage in stages]
    return [*found, ("bf16", tiny_config(zero_stage=2, precision="bf16"))]


def save_both_ways(groups: ProcessGroups, folder: str, stages: list[int]) -> None:
    """Train each variant a little, and save it with DeepSpeed and with the store."""
    for name, config in configs(stages):
        engine = DeepSpeedEngine(JointElectra(config), config, groups.world, CPU)
        for step in range(NUM_STEPS):
            mine = micro_batches(config, step, groups.world.rank, groups.world.world_size)
            engine.step(mine, 1e-3)
        engine._engine.save_checkpoint(f"{folder}/deepspeed/{name}")
        attempt = Attempt.join(Path(folder) / "ours" / name, 1)
        attempt.folder.mkdir(parents=True, exist_ok=True)
        store = CheckpointStore(
            attempt, groups.control, keep_last=9, commit_timeout_seconds=60, asynchronous=False
        )
        store.save(engine, NUM_STEPS, {"step": NUM_STEPS})
        assert store.wait()
        engine.close()
