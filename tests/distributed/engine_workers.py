"""What the ranks of the engine tests do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.config.schema import RunConfig
from electra_dist.data.stream import MicroBatch
from electra_dist.engine.deepspeed import DeepSpeedEngine
from electra_dist.engine.protocol import Engine, to_batch
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.engine.schedule import learning_rate_factor
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.collectives import ProcessGroups
from electra_dist.runtime.world import World
from tests.distributed.synthetic import micro_batches, tiny_config

CPU = torch.device("cpu")
ALONE = World.from_environment({})
Samples = dict[tuple[int, int], Tensor]


class Recorder:
    """make_batch that remembers what was sampled for each micro-batch."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.samples: Samples = {}
        self._current = (0, 0)
        model.register_forward_hook(self._remember)

    def __call__(self, micro_batch: MicroBatch, seed: int, device: torch.device) -> Batch:
        self._current = (micro_batch.step, micro_batch.index)
        return to_batch(micro_batch, seed, device)

    def _remember(self, _module: object, _inputs: object, output: Any) -> None:
        self.samples[self._current] = output.sampled_ids_BN.clone()


def rate(config: RunConfig, step: int) -> float:
    schedule = config.schedule
    factor = learning_rate_factor(step, schedule.num_steps, schedule.warmup_steps)
    return config.optim.learning_rate * factor


def reference_run(
    config: RunConfig, num_steps: int
) -> tuple[list[float], dict[str, Tensor], Samples]:
    """Losses a step, final state by fragment name, and recorded samples of a single-rank run."""
    model = JointElectra(config)
    recorder = Recorder(model)
    engine = ReferenceEngine(model, config, ALONE, CPU, make_batch=recorder)
    losses = []
    for step in range(num_steps):
        result = engine.step(micro_batches(config, step, 0, 1), rate(config, step))
        losses.append(result.sums["loss"] / config.batch.num_micro_batches)
    return losses, owned_state(engine), recorder.samples


def owned_state(engine: Engine) -> dict[str, Tensor]:
    """What this rank saves, as zero-filled whole tensors by name and kind."""
    state: dict[str, Tensor] = {}
    for name, kind, start, values in engine.owned_fragments():
        whole = state.setdefault(f"{name}/{kind}", torch.zeros(engine.parameter_shapes[name]))
        whole.view(-1)[start : start + len(values)] = values
    return state


def record_reference(path: Path, num_steps: int) -> None:
    """Write what `reference_run` gives, for the ranks to compare with."""
    losses, state, samples = reference_run(tiny_config(kind="reference"), num_steps)
    tensors = {f"state:{name}": value.clone() for name, value in state.items()}
    tensors |= {f"samples:{step}:{i}": ids for (step, i), ids in samples.items()}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    safetensors.torch.save_file(tensors, path)


def read_reference(path: str) -> tuple[list[float], dict[str, Tensor], Samples]:
    tensors = safetensors.torch.load_file(path)
    losses = tensors.pop("losses").tolist()
    state = {n.removeprefix("state:"): t for n, t in tensors.items() if n.startswith("state:")}
    samples = {}
    for name, ids in tensors.items():
        if name.startswith("samples:"):
            _, step, index = name.split(":")
            samples[int(step), int(index)] = ids
    return losses, state, samples


def parity(
    groups: ProcessGroups, reference: str, variants: list[dict[str, Any]]
) -> list[dict[str, float]]:
    """For each DeepSpeed variant: worst loss and weight difference from the reference engine."""
    world = groups.world
    losses, state, samples = read_reference(reference)
    num_steps = len(losses)

    def replay(micro_batch: MicroBatch, seed: int, device: torch.device) -> Batch:
        recorded = samples[micro_batch.step, micro_batch.index]
        return to_batch(micro_batch, seed, device)._replace(sampled_ids_BN=recorded)

    reports = []
    for variant in variants:
        config = tiny_config(**variant)
        engine = DeepSpeedEngine(JointElectra(config), config, world, CPU, make_batch=replay)
        worst_loss = 0.0
        for step in range(num_steps):
            mine = micro_batches(config, step, world.rank, world.world_size)
            result = engine.step(mine, rate(config, step))
            total = groups.control.all_reduce_sum([result.sums["loss"]])[0]
            loss = total / config.batch.num_micro_batches
            worst_loss = max(worst_loss, abs(loss - losses[step]) / abs(losses[step]))
        owned = owned_state(engine)
        worst_weight = 0.0
        for name in sorted(state):
            whole = owned.get(name, torch.zeros_like(state[name]))
            dist.all_reduce(whole)
            if name.endswith("/master"):
                worst_weight = max(worst_weight, float((whole - state[name]).abs().max()))
        engine.close()
        reports.append({"loss": worst_loss, "weight": worst_weight})
    return reports


def flips(groups: ProcessGroups, reference: str, stages: list[int]) -> list[float]:
    """Share of generator samples that differ from the reference engine's, nothing replayed."""
    world = groups.world
    losses, _, samples = read_reference(reference)
    num_steps = len(losses)
    shares = []
    for stage in stages:
        config = tiny_config(zero_stage=stage)
        model = JointElectra(config)
        recorder = Recorder(model)
        engine = DeepSpeedEngine(model, config, world, CPU, make_batch=recorder)
        for step in range(num_steps):
            mine = micro_batches(config, step, world.rank, world.world_size)
            engine.step(mine, rate(config, step))
        engine.close()
        unequal = sum(int((samples[k] != mine).sum()) for k, mine in recorder.samples.items())
        total = sum(mine.numel() for mine in recorder.samples.values())
        unequal, total = groups.control.all_reduce_sum([unequal, total])  # type: ignore[assignment]
        shares.append(unequal / total)
    return shares


def deadline_seconds(group: dist.ProcessGroup) -> float:
    """Of the group's collectives on the CPU."""
    deadline: timedelta = group._get_backend(CPU).options._timeout
    return deadline.total_seconds()


def train_and_save(
    groups: ProcessGroups, run: str, engines: list[dict[str, Any]], num_steps: int
) -> None:
    """Each engine in turn: restore the newest checkpoint of `run`, train, save as the next step.

    `pad` among an engine's settings is `model.pad_vocab_to_multiple_of`.
    """
    attempt = Attempt.join(Path(run), 1)
    attempt.folder.mkdir(parents=True, exist_ok=True)
    store = CheckpointStore(
        attempt, groups.control, keep_last=99, commit_timeout_seconds=60, asynchronous=False
    )
    for variant in engines:
        pad = variant.get("pad", 1)
        config = tiny_config(**{name: one for name, one in variant.items() if name != "pad"})
        config = replace(config, model=replace(config.model, pad_vocab_to_multiple_of=pad))
        kind = ReferenceEngine if config.engine.kind == "reference" else DeepSpeedEngine
        engine = kind(JointElectra(config), config, groups.world, CPU)
        state = store.restore(engine, engine.parameter_shapes)
        saved = state["step"] if state else 0
        for step in range(num_steps):
            mine = micro_batches(config, step, groups.world.rank, groups.world.world_size)
            engine.step(mine, 1e-3)
        if isinstance(engine, DeepSpeedEngine):
            group = engine._engine.seq_data_parallel_group  # of its gradients
            assert deadline_seconds(group) == pytest.approx(config.engine.timeout_seconds, abs=10)
        store.save(engine, saved + 1, {"step": saved + 1})
        assert store.wait()
        engine.close()
