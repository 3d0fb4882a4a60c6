"""What the ranks of the health tests do: steps that are vetoed, and runs over poisoned rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xxhash

from electra_dist.data.stream import MicroBatch
from electra_dist.engine.deepspeed import DeepSpeedEngine
from electra_dist.engine.protocol import Engine, LocalResult, to_batch
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.collectives import ProcessGroups
from tests.distributed.resume_workers import live, small_run
from tests.distributed.synthetic import micro_batches, tiny_config

CPU = torch.device("cpu")


class Poison:
    """make_batch that multiplies the loss weights of some micro-batches by a factor."""

    def __init__(self, factor: float, indices: Sequence[int]) -> None:
        self.factor, self.indices = factor, indices
        self.is_on = False

    def __call__(self, micro_batch: MicroBatch, seed: int, device: torch.device) -> Batch:
        batch = to_batch(micro_batch, seed, device)
        if self.is_on and micro_batch.index in self.indices:
            return batch._replace(masked_weights_BN=batch.masked_weights_BN * self.factor)
        return batch


def state_hash(engine: Engine) -> str:
    """Of every bit of weights and moments that this rank holds, and of the weights it computes with.

    At ZeRO-3 the latter are gathered from the former when they are needed.
    """
    digest = xxhash.xxh3_128()
    for fragment in engine.local_fragments():
        digest.update(fragment.values.detach().contiguous().numpy())
    if getattr(engine, "_stage", 0) < 3:
        for parameter in model_of(engine).parameters():
            digest.update(parameter.detach().float().contiguous().numpy())
    return digest.hexdigest()


def model_of(engine: Engine) -> torch.nn.Module:
    model: torch.nn.Module = engine._model if isinstance(engine, ReferenceEngine) else engine._engine.module  # type: ignore[attr-defined]  # noqa: E501
    return model


def vetoed_steps(
    groups: ProcessGroups, variants: list[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """For each engine: what a veto and a NaN leave of the state, at the first step and later."""
    reports = []
    for variant in variants:
        config = tiny_config(**variant)
        config = replace(config, model=replace(config.model, num_layers=1, generator_num_layers=1))
        poison = Poison(float("nan"), [3])
        kind = ReferenceEngine if config.engine.kind == "reference" else DeepSpeedEngine
        engine = kind(JointElectra(config), config, groups.world, CPU, make_batch=poison)
        report = []
        for step in range(2):
            mine = micro_batches(config, step, groups.world.rank, groups.world.world_size)
            before = state_hash(engine)
            asked: list[LocalResult] = []

            def veto(local: LocalResult, asked: list[LocalResult] = asked) -> bool:
                asked.append(local)
                return False

            first = engine.step(mine, 1e-3, veto)
            again = engine.step(mine, 1e-3, veto)
            poison.is_on = True
            sick = engine.step(mine, 1e-3)
            poison.is_on = False
            after_vetoes = state_hash(engine)
            healthy = engine.step(mine, 1e-3)
            report.append(
                {
                    "untouched": after_vetoes == before,
                    "moved": state_hash(engine) != before,
                    "times_asked": len(asked),
                    "replays_equal": first == again == healthy,
                    "sick_norm": str(sick.grad_norm),
                    "sick_micro_batches": [
                        i for i, loss in sick.micro_batch_losses.items() if loss != loss
                    ],
                }
            )
        engine.close()
        reports.append(report)
    return reports
