"""What the ranks of the engine tests do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from electra_dist.config.schema import RunConfig
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.deepspeed import DeepSpeedEngine
from electra_dist.engine.protocol import Engine, to_batch
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.world import World
from tests.distributed.synthetic import micro_batches, tiny_config

CPU = torch.device("cpu")
Samples = dict[tuple[int, int], Tensor]


def alone() -> World:
    """One rank, whatever the process group says."""
    return World.from_environment({})


class Recorder:
    """make_batch that remembers what was sampled for each micro-batch, through the model's output."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.samples: Samples = {}
        self._current = (0, 0)
        model.register_forward_hook(self._remember)

    def __call__(self, micro_batch: MicroBatch, seed: int, device: torch.device) -> Batch:
        self._current = (micro_batch.step, micro_batch.index)
        return to_batch(micro_batch, seed, device)

    def _remember(self, module: object, inputs: object, output: Any) -> None:
        self.samples[self._current] = output.sampled_ids_BN.clone()


def reference_run(
    config: RunConfig, num_steps: int
) -> tuple[list[float], dict[str, Tensor], Samples]:
    """Losses a step, final state by fragment name, and the recorded samples of a calm single-rank run."""
    model = JointElectra(config)
    recorder = Recorder(model)
    engine = ReferenceEngine(model, config, alone(), CPU, make_batch=recorder)
    losses = []
    for step in range(num_steps):
        result = engine.step(micro_batches(config, step, 0, 1), 1e-3)
        losses.append(result.sums["loss"] / config.batch.num_micro_batches)
    return losses, whole_state(engine), recorder.samples


def whole_state(engine: Engine) -> dict[str, Tensor]:
    """This rank's fragments as zero-filled whole tensors, by name and kind."""
    state: dict[str, Tensor] = {}
    for name, kind, start, values in engine.owned_fragments():
        shape = engine.parameter_shapes[name]
        whole = state.setdefault(f"{name}/{kind}", torch.zeros(shape))
        whole.view(-1)[start : start + len(values)] = values
    return state


def parity(world: World, num_steps: int, variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each variant of the DeepSpeed engine: worst loss and weight difference from the reference engine."""
    import torch.distributed as dist

    losses, state, samples = reference_run(tiny_config(kind="reference"), num_steps)
    names = sorted(state)
    reports = []
    for variant in variants:
        config = tiny_config(**variant)

        def replay(micro_batch: MicroBatch, seed: int, device: torch.device) -> Batch:
            recorded = samples[micro_batch.step, micro_batch.index]
            return to_batch(micro_batch, seed, device)._replace(sampled_ids_BN=recorded)

        engine = DeepSpeedEngine(JointElectra(config), config, world, CPU, make_batch=replay)
        worst_loss = 0.0
        for step in range(num_steps):
            result = engine.step(micro_batches(config, step, world.rank, world.world_size), 1e-3)
            total = torch.tensor(result.sums["loss"], dtype=torch.float64)
            dist.all_reduce(total)
            loss = total.item() / config.batch.num_micro_batches
            worst_loss = max(worst_loss, abs(loss - losses[step]) / abs(losses[step]))
        mine = whole_state(engine)
        worst = dict.fromkeys(("master", "exp_avg", "exp_avg_sq"), 0.0)
        for name in names:
            whole = mine.get(name, torch.zeros_like(state[name]))
            dist.all_reduce(whole)
            kind = name.rsplit("/", 1)[1]
            worst[kind] = max(worst[kind], float((whole - state[name]).abs().max()))
        engine.close()
        reports.append({"variant": variant, "loss": worst_loss, **worst, "norm": result.grad_norm})
    return reports
