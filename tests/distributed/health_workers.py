"""What the ranks of the health tests do: steps that are vetoed, and runs over poisoned rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xxhash

from electra_dist.data.stream import MicroBatch
from electra_dist.engine.deepspeed import DeepSpeedEngine
from electra_dist.engine.protocol import Engine, LocalResult
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.batch import Batch, Losses
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.collectives import ProcessGroups
from electra_dist.train.build import Run
from tests.distributed.resume_workers import live, small_run
from tests.distributed.synthetic import micro_batches, tiny_config

CPU = torch.device("cpu")


class Poison:
    """Multiplies the losses of an engine's micro-batches by what `factor_of` says of each."""

    def __init__(self, engine: Any, factor_of: Callable[[MicroBatch], float]) -> None:
        self._factor_of, self._factor = factor_of, 1.0
        self._plain = engine._make_batch
        engine._make_batch = self
        model_of(engine).register_forward_hook(self._scale)

    def __call__(self, micro_batch: MicroBatch, seed: int, device: torch.device) -> Batch:
        self._factor = self._factor_of(micro_batch)
        batch: Batch = self._plain(micro_batch, seed, device)
        return batch

    def _scale(self, model: torch.nn.Module, _inputs: object, losses: Losses) -> Losses:
        return losses._replace(total=losses.total * self._factor) if model.training else losses


def state_hash(engine: Engine) -> str:
    """Of every bit of weights and moments that this rank holds, and that it computes with.

    At ZeRO-3 the latter are gathered from the former when they are needed.
    """
    digest = xxhash.xxh3_128()
    for fragment in engine.local_fragments():
        digest.update(fragment.values.detach().contiguous().numpy())
    if getattr(engine, "_stage", 0) < 3:
        for parameter in model_of(engine).parameters():
            digest.update(parameter.detach().float().contiguous().numpy())
    return digest.hexdigest()


def model_of(engine: Any) -> torch.nn.Module:
    """The weights that an engine computes with."""
    model: torch.nn.Module
    model = engine._model if isinstance(engine, ReferenceEngine) else engine._engine.module
    return model


def vetoed_steps(
    groups: ProcessGroups, variants: list[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """For each engine: what a veto and a NaN leave of the state, at the first step and later."""
    reports = []
    for variant in variants:
        config = tiny_config(**variant)
        config = replace(config, model=replace(config.model, num_layers=1, generator_num_layers=1))
        is_sick = False

        def factor_of(micro_batch: MicroBatch) -> float:
            return float("nan") if is_sick and micro_batch.index == 3 else 1.0  # noqa: B023

        kind = ReferenceEngine if config.engine.kind == "reference" else DeepSpeedEngine
        engine = kind(JointElectra(config), config, groups.world, CPU)
        Poison(engine, factor_of)
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
            is_sick = True
            sick = engine.step(mine, 1e-3)
            is_sick = False
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


def poison_rows(run: Run, positions: Sequence[int], factor: float) -> None:
    """Bad data: whichever micro-batch holds one of these global positions, in every attempt."""

    def factor_of(micro_batch: MicroBatch) -> float:
        state = run.state
        held = run.stream.positions(micro_batch.index, state.position, state.skipped)
        return factor if set(held.tolist()) & set(positions) else 1.0

    Poison(run.engine, factor_of)


def glitch(run: Run, step: int) -> None:
    """Bad hardware: the first pass of a step, and only the first time, loses its numbers."""
    left = [float("nan")]

    def factor_of(micro_batch: MicroBatch) -> float:
        return left.pop() if micro_batch.step == step and left else 1.0

    Poison(run.engine, factor_of)


def lives(groups: ProcessGroups, corpus: str, folder: str, runs: list[dict[str, Any]]) -> list[str]:
    """Runs one after the other, each in the folder `name`; why each ended."""
    reasons = []
    for one in runs:
        config = small_run(corpus, one["engine"], one.get("more", ()))

        def prepare(run: Run, one: dict[str, Any] = one) -> None:
            if "poison" in one:
                poison_rows(run, one["poison"], float(one.get("factor", "nan")))
            if "glitch" in one and groups.world.rank == groups.world.world_size - 1:
                glitch(run, one["glitch"])

        folder_of_run = Path(folder) / one["name"]
        reasons.append(live(groups, config, folder_of_run, one.get("stop_at"), prepare))
    return reasons
