"""What the ranks of the tests of objectives do: each variant under DeepSpeed and under PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from electra_dist.config.schema import BatchConfig, RunConfig
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.deepspeed import DeepSpeedEngine
from electra_dist.engine.protocol import Engine, to_batch
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.collectives import ProcessGroups
from tests.distributed.engine_workers import ALONE, CPU, Recorder, Samples, owned_state
from tests.distributed.synthetic import micro_batches, tiny_config
from tests.variants import SPECIAL_IDS, variant_of


def config_of(variant: str, **engine: Any) -> RunConfig:
    config = tiny_config(**engine)
    narrow = replace(config.model, num_layers=2, generator_num_layers=2, generator_hidden_size=32)
    rows = BatchConfig(global_batch_size=8, micro_batch_size=4)
    return variant_of(replace(config, model=narrow, batch=rows), variant)


def parity_of_variants(
    groups: ProcessGroups, cases: list[tuple[str, dict[str, Any]]], num_steps: int
) -> list[dict[str, float]]:
    """For each case: worst loss and weight difference from the reference engine.

    Every other micro-batch has rows that share one.
    """
    reports = []
    for variant, settings in cases:
        plain = config_of(variant, kind="reference")
        model = JointElectra(plain, SPECIAL_IDS)
        shared = to_batch(micro_batches(plain, 0, 0, 1)[1], plain.seed, CPU)
        assert shared.block_ids_BL is not None
        assert len(shared.input_ids_BL) < plain.batch.micro_batch_size
        recorder = Recorder(model)
        reference = ReferenceEngine(model, plain, ALONE, CPU, make_batch=recorder)
        losses = [
            reference.step(micro_batches(plain, step, 0, 1), 1e-3).sums["loss"]
            for step in range(num_steps)
        ]
        config = config_of(variant, **settings)
        engine = DeepSpeedEngine(
            JointElectra(config, SPECIAL_IDS),
            config,
            groups.world,
            CPU,
            make_batch=_replayed(recorder.samples)
            if plain.objective.sampling_dropout
            else to_batch,
        )
        worst_loss = 0.0
        for step in range(num_steps):
            mine = micro_batches(config, step, groups.world.rank, groups.world.world_size)
            part = engine.step(mine, 1e-3).sums["loss"]
            total = groups.control.all_reduce_sum([part])[0]
            worst_loss = max(worst_loss, abs(total - losses[step]) / abs(losses[step]))
        engine.evaluate(to_batch(mine[0], config.seed, CPU))  # as held-out evaluation asks
        reports.append(
            {"loss": worst_loss, "weight": _worst_weight(engine, owned_state(reference))}
        )
        engine.close()
    return reports


def _replayed(samples: Samples) -> Any:
    """make_batch with the reference engine's samples: rounding moves one across a boundary."""

    def replay(micro_batch: MicroBatch, seed: int, device: torch.device) -> Batch:
        recorded = samples[micro_batch.step, micro_batch.index]
        return to_batch(micro_batch, seed, device)._replace(sampled_ids_BN=recorded)

    return replay


def _worst_weight(engine: Engine, state: dict[str, Tensor]) -> float:
    owned, worst = owned_state(engine), 0.0
    for name in sorted(state):
        whole = owned.get(name, torch.zeros_like(state[name]))
        dist.all_reduce(whole)
        if name.endswith("/master"):
            worst = max(worst, float((whole - state[name]).abs().max()))
    return worst
