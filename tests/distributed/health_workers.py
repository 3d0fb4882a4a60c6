"""What the ranks of the health tests do: steps that are vetoed, and runs with faults on purpose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xxhash

from electra_dist.data.stream import MicroBatch
from electra_dist.engine.deepspeed import DeepSpeedEngine
from electra_dist.engine.protocol import Engine, LocalResult
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.electra import JointElectra
from electra_dist.resilience.faults import flip_a_weight, parse_faults, times
from electra_dist.runtime.collectives import ProcessGroups
from electra_dist.train.build import Run
from tests.distributed.resume_workers import live, small_run
from tests.distributed.synthetic import micro_batches, tiny_config

CPU = torch.device("cpu")


def state_hash(engine: Engine, stage: int) -> str:
    """Of every bit of weights and moments that this rank holds, and that it computes with.

    At ZeRO-3 the latter are gathered from the former when they are needed.
    """
    digest = xxhash.xxh3_128()
    for fragment in engine.local_fragments():
        digest.update(fragment.values.detach().contiguous().numpy())
    if stage < 3:
        for parameter in engine.module.parameters():
            digest.update(parameter.detach().float().contiguous().numpy())
    return digest.hexdigest()


def multiplied(micro_batch: MicroBatch, factor: float) -> MicroBatch:
    """The pass whose losses come out that many times as large."""
    return replace(micro_batch, disturb=lambda losses: times(losses, factor))


def vetoed_steps(
    groups: ProcessGroups, variants: list[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """For each engine: what a veto and a NaN leave of the state, at the first step and later."""
    reports = []
    for variant in variants:
        config = tiny_config(**variant)
        config = replace(config, model=replace(config.model, num_layers=1, generator_num_layers=1))
        kind = ReferenceEngine if config.engine.kind == "reference" else DeepSpeedEngine
        engine = kind(JointElectra(config), config, groups.world, CPU)
        stage = config.engine.zero_stage if kind is DeepSpeedEngine else 0
        report = []
        for step in range(2):
            mine = micro_batches(config, step, groups.world.rank, groups.world.world_size)
            sick_ones = [multiplied(m, float("nan")) if m.index == 3 else m for m in mine]
            before = state_hash(engine, stage)
            asked: list[LocalResult] = []

            def veto(local: LocalResult, asked: list[LocalResult] = asked) -> bool:
                asked.append(local)
                return False

            first = engine.step(mine, 1e-3, veto)
            again = engine.step(mine, 1e-3, veto)
            sick = engine.step(sick_ones, 1e-3)
            after_vetoes = state_hash(engine, stage)
            healthy = engine.step(mine, 1e-3)
            losses = sick.micro_batch_losses
            report.append(
                {
                    "untouched": after_vetoes == before,
                    "moved": state_hash(engine, stage) != before,
                    "times_asked": len(asked),
                    "replays_equal": first == again == healthy,
                    "sick_norm": str(sick.grad_norm),
                    "sick_micro_batches": [i for i, loss in losses.items() if loss != loss],
                }
            )
        engine.close()
        reports.append(report)
    return reports


def lives(groups: ProcessGroups, corpus: str, folder: str, runs: list[dict[str, Any]]) -> list[str]:
    """Runs one after the other, each in the folder `name`, with its faults; why each ended."""
    reasons = []
    for one in runs:
        config = small_run(corpus, one["engine"], one.get("more", ()))

        def prepare(run: Run, one: dict[str, Any] = one) -> None:
            if "diverged" in one:
                diverge(run, one["diverged"])
            if one.get("flip", [None])[0] == groups.world.rank:
                flip_after_update(run, one["flip"][1])

        folder_of_run = Path(folder) / one["name"]
        reason = live(
            groups,
            config,
            folder_of_run,
            one.get("stop_at"),
            prepare=prepare,
            faults=parse_faults(one.get("faults", "")),
        )
        reasons.append(reason)
    return reasons


def diverge(run: Run, step: int) -> None:
    """Bad weights: losses spike at a step until the checkpoint before it is abandoned."""
    checkpoints = run.attempt.run_folder / "checkpoints"
    plain = run.fetch

    def fetch() -> list[MicroBatch]:
        is_sick = run.state.step == step and not list(checkpoints.glob("*.abandoned"))
        return [multiplied(m, 1e3) for m in plain()] if is_sick else plain()

    run.fetch = fetch  # type: ignore[method-assign]


def flip_after_update(run: Run, step: int) -> None:
    """A bit turns over after the update that completes `step`; `flip` turns it before an update."""
    plain = run.engine.step
    left = [step]

    def step_and_flip(*arguments: Any) -> LocalResult:
        result = plain(*arguments)
        if run.state.step + 1 in left:
            left.clear()
            flip_a_weight(run.engine.module)
        return result

    run.engine.step = step_and_flip  # type: ignore[method-assign]
