"""What the ranks of the optimizer and precision tests do: many engines in one process group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.config import DeepSpeedConfig
from torch import Tensor

from electra_dist.config.schema import RunConfig
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.deepspeed import DeepSpeedEngine
from electra_dist.engine.ds_config import deepspeed_config
from electra_dist.engine.optim import make_optimizer
from electra_dist.engine.protocol import Engine, StepOptions
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.collectives import ProcessGroups
from tests.distributed.engine_workers import CPU, owned_state
from tests.distributed.health_workers import multiplied, state_hash
from tests.distributed.resume_workers import STOP_AT, live, small_run
from tests.distributed.synthetic import micro_batches, tiny_config

NUM_STEPS = 3
RATE = 1e-2


def small_config(optimizer: str = "electra_adam", **engine: Any) -> RunConfig:
    """One layer a tower, no dropout."""
    config = tiny_config(**engine)
    model = replace(
        config.model,
        num_layers=1,
        generator_num_layers=1,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    return replace(config, model=model, optim=replace(config.optim, name=optimizer))  # type: ignore[arg-type]


def make(config: RunConfig, groups: ProcessGroups) -> ReferenceEngine | DeepSpeedEngine:
    kind = ReferenceEngine if config.engine.kind == "reference" else DeepSpeedEngine
    return kind(JointElectra(config), config, groups.world, CPU)


def is_cut(engine: Engine) -> bool:
    return isinstance(engine, DeepSpeedEngine) and engine._stage > 0


class Gradients:
    """Remembers the gradients that an engine's optimizer is given, this rank's pieces of them."""

    def __init__(self, engine: ReferenceEngine | DeepSpeedEngine) -> None:
        self._engine, self._plain = engine, engine._norms.add
        self._starts = {f.parameter: f.start for f in engine.local_fragments()}
        self._counts = is_cut(engine) or dist.get_rank() == 0
        self.whole: dict[str, Tensor] = {}
        engine._norms.add = self.add  # type: ignore[method-assign]

    def add(self, tensors: Sequence[Tensor]) -> None:
        parts = self._engine.optimizer.parts
        assert parts is not None
        for number, tensor, own in parts.walk(tensors):
            name = parts.names[number]
            whole = self.whole.setdefault(name, torch.zeros(self._engine.parameter_shapes[name]))
            assert tensor.grad is not None
            piece = tensor.grad.reshape(-1)[own] / self._engine.optimizer.gradient_divisor
            if self._counts:
                whole.view(-1)[self._starts[name] : self._starts[name] + len(piece)] = piece
        self._plain(tensors)

    def take(self) -> dict[str, Tensor]:
        """Whole gradients as they were about to be applied. Collective."""
        found = {}
        for name, shape in self._engine.parameter_shapes.items():
            found[name] = self.whole.pop(name, torch.zeros(shape))
            dist.all_reduce(found[name])
        return found


def masters(engine: Engine) -> dict[str, Tensor]:
    """The whole fp32 weights. Collective."""
    owned = owned_state(engine)
    found = {}
    for name, shape in engine.parameter_shapes.items():
        found[name] = owned.get(f"{name}/master", torch.zeros(shape))
        dist.all_reduce(found[name])
    return found


def against_whole(
    groups: ProcessGroups, optimizers: list[str], variants: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Each engine's updates beside those of the same optimizer on whole parameters.

    The oracle is given the engine's own gradients: what is left is what sharding does.
    """
    reports = []
    for name in optimizers:
        finals: list[dict[str, Tensor]] = []
        for variant in variants:
            config = small_config(name, **variant)
            engine, oracle = make(config, groups), JointElectra(config)
            gradients, whole = Gradients(engine), make_optimizer(oracle, config.optim)
            start = masters(engine)
            worst, worst_norm, worst_divisor, most = 0.0, 0.0, 0.0, 0.0
            for step in range(NUM_STEPS):
                mine = micro_batches(config, step, groups.world.rank, groups.world.world_size)
                result = engine.step(mine, RATE, options=StepOptions(measures_norms=True))
                squares = list(result.squared_norms.values())
                total = sum(groups.control.all_reduce_sum(squares))
                worst_norm = max(worst_norm, abs(math.sqrt(total) / result.grad_norm - 1))
                over = max(1.0, result.grad_norm / config.optim.clip_norm)
                most = max(most, over)
                worst_divisor = max(
                    worst_divisor, abs(engine.optimizer.gradient_divisor / over - 1)
                )
                for parameter_name, gradient in gradients.take().items():
                    oracle.get_parameter(parameter_name).grad = gradient
                whole.num_updates = step
                for group in whole.param_groups:
                    group["lr"] = RATE
                whole.step()
                found = masters(engine)
                worst = max(
                    worst,
                    *(
                        float((found[n] - p.detach()).abs().max())
                        for n, p in oracle.named_parameters()
                    ),
                )
            finals.append(found)
            engine.close()
            moved = sum(float((found[n] - start[n]).norm()) ** 2 for n in found)
            apart = sum(float((found[n] - finals[0][n]).norm()) ** 2 for n in found)
            reports.append(
                {
                    "optimizer": name,
                    "variant": str(variant),
                    "from_whole": worst,
                    "from_first": math.sqrt(apart / moved),
                    "tower_norms": worst_norm,
                    "divisor": worst_divisor,
                    "most_over_the_clip": most,
                }
            )
    return reports


def half_precision(groups: ProcessGroups, variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each engine: a step that overflows, one that does not, and a loss that is not finite."""
    reports = []
    for variant in variants:
        config = small_config("lamb", **variant)
        engine = make(config, groups)
        stage = config.engine.zero_stage if is_cut(engine) else 0
        scales = [1.0, 256.0] if config.engine.precision == "fp16" else [1.0]
        mine = micro_batches(config, 0, groups.world.rank, groups.world.world_size)
        before = state_hash(engine, stage)
        overflow = None
        if config.engine.precision == "fp16":
            overflow = engine.step(mine, RATE, options=StepOptions(loss_scale=2.0**32))
        norms = []
        for scale in scales:
            refused = engine.step(mine, RATE, lambda _: False, StepOptions(loss_scale=scale))
            norms.append(refused.grad_norm)
        sick: list[MicroBatch] = [multiplied(m, math.nan) if m.index == 3 else m for m in mine]
        poisoned = engine.step(sick, RATE, options=StepOptions(loss_scale=scales[-1]))
        untouched = state_hash(engine, stage) == before
        start = masters(engine)
        losses = []
        for _ in range(3):
            result = engine.step(mine, RATE, options=StepOptions(loss_scale=scales[-1]))
            total = groups.control.all_reduce_sum([result.sums["loss"]])[0]
            losses.append(total / config.batch.num_micro_batches)
        moved = sum(float((p - start[n]).norm()) ** 2 for n, p in masters(engine).items())
        computes_in = {str(p.dtype) for p in engine.module.parameters()}
        engine.close()
        reports.append(
            {
                "overflow_norm": overflow and str(overflow.grad_norm),
                "norms": norms,
                "poisoned_norm": str(poisoned.grad_norm),
                "untouched": untouched,
                "moved": math.sqrt(moved),
                "losses": losses,
                "computes_in": sorted(computes_in),
            }
        )
    return reports


def read_by_deepspeed(_: ProcessGroups, folder: str) -> dict[str, list[Any]]:
    """What DeepSpeed's own config makes of each shipped file, with what we add to it."""
    found = {}
    for path in Path(folder).glob("*.json"):
        stage = int(path.stem.removeprefix("zero")[0])
        config = tiny_config(zero_stage=stage, deepspeed_config=str(path))
        read = DeepSpeedConfig(deepspeed_config(config, num_passes=8))
        zero = read.zero_config
        devices = [
            str(one.device) if one else None for one in (zero.offload_optimizer, zero.offload_param)
        ]
        found[path.stem] = [int(zero.stage), *devices, read.aio_config["queue_depth"]]
    return found


def fp16_lives(
    groups: ProcessGroups, corpus: str, folder: str, engines: list[dict[str, Any]]
) -> list[list[str]]:
    """For each engine: a run in one life, and one that is stopped and resumed; AdamW, then LAMB."""
    reasons = []
    for number, engine in enumerate(engines):
        config = small_run(corpus, engine, ["--optim.name", ("adamw", "lamb")[number % 2]])
        calm, broken = Path(folder) / f"calm_{number}", Path(folder) / f"broken_{number}"
        lives = [(calm, None), (broken, STOP_AT), (broken, None)]
        reasons.append([live(groups, config, run, stop_at) for run, stop_at in lives])
    return reasons
