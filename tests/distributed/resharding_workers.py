"""What the ranks of the resharding test do: worlds of 1 to 4 of them, one after the other."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from electra_dist.checkpoint.layout import step_name
from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.engine.deepspeed import DeepSpeedEngine
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.collectives import ProcessGroups
from electra_dist.runtime.control import Control
from electra_dist.runtime.world import World
from tests import zero_layouts
from tests.distributed.synthetic import tiny_config

SHAPES = {
    "embedding.weight": (101, 7),
    "dense.weight": (13, 11),
    "dense.bias": (13,),
    "layer_norm.weight": (11,),
    "layer_norm.bias": (3,),
    "output.weight": (1, 257),
    "output.bias": (1,),
}
"""Odd sizes; with 4 ranks some of them hold nothing of the smallest."""
SEED = 5


class OddModel(nn.Module):
    """Parameters without a forward pass: nothing is trained here."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            module, parameter = name.split(".")
            if not hasattr(self, module):
                self.add_module(module, nn.Module())
            getattr(self, module).register_parameter(parameter, nn.Parameter(torch.zeros(shape)))

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        return []


def every_shape(groups: ProcessGroups, folder: str, sources: str, world_sizes: list[int]) -> int:
    """Restore every checkpoint in `sources` into an engine of every stage in each world.

    Each engine also saves what it has restored, as `folder`/<stage>_<world>.

    Returns how many restores this rank took part in.
    """
    world, store = groups.world, groups.control.store
    dist.destroy_process_group()
    num_restored = 0
    for world_size in world_sizes:
        if world.rank < world_size:
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore(f"world {world_size}", store),
                rank=world.rank,
                world_size=world_size,
            )
            smaller = replace(world, world_size=world_size, local_world_size=world_size)
            os.environ.update(smaller.as_environment())  # DeepSpeed asks there too
            control = Control(
                group=dist.new_group(backend="gloo"),
                store=dist.PrefixStore(f"control {world_size}", store),
                world=smaller,
                timeout_seconds=60.0,
            )
            for stage in zero_layouts.STAGES:
                num_restored += one_engine(control, smaller, stage, Path(folder), Path(sources))
            deepspeed.comm.destroy_process_group()
            deepspeed.comm.comm.cdb = None  # it would go on with the group that is gone
    dist.init_process_group(
        "gloo",
        store=dist.PrefixStore("again", store),
        rank=world.rank,
        world_size=world.world_size,
    )
    groups.control.group = dist.new_group(backend="gloo")
    return num_restored


def one_engine(control: Control, world: World, stage: int, folder: Path, sources: Path) -> int:
    """All checkpoints into one engine, and one save."""
    config = tiny_config(zero_stage=stage)
    engine = DeepSpeedEngine(OddModel(), config, world, torch.device("cpu"))
    expected_ranges = zero_layouts.local(SHAPES, stage, world.world_size, world.rank)
    assert [(f.parameter, f.start, f.start + len(f.values)) for f in engine.local_fragments()] == [
        one for one in expected_ranges for _ in range(3)
    ], f"stage {stage}, {world.world_size} ranks: the ranges are not those of zero_layouts"
    paths = sorted(sources.iterdir())
    for number, path in enumerate(paths):
        state = zero_layouts.some_state(SHAPES, SEED + number)
        for fragment in engine.local_fragments():
            fragment.values.fill_(-1.0)
        restored = a_store(control, path).restore(engine, engine.parameter_shapes)
        assert restored is not None
        for f in engine.local_fragments():
            wanted = state[f"{f.parameter}/{f.kind}"][f.start : f.start + len(f.values)]
            found = f.values.numpy().view(np.uint32)
            assert np.array_equal(found, wanted.view(np.uint32)), (stage, path.name, f[:3])
        # What the model computes with: all of it, at stage 3 too where parameters are this small.
        for name, parameter in engine._parameters.items():
            whole = parameter.detach().numpy().reshape(-1)
            assert whole.tobytes() == state[f"{name}/master"].tobytes(), (stage, path.name, name)
    store = a_store(control, folder / f"{stage}_{world.world_size}")
    store.save(engine, 1, {})
    assert store.wait()
    store.close()
    engine.close()
    return len(paths)


def a_store(control: Control, run: Path) -> CheckpointStore:
    """For one attempt that every rank knows to be the first."""
    attempt = Attempt.join(run, 1)
    attempt.folder.mkdir(parents=True, exist_ok=True)
    return CheckpointStore(
        attempt, control, keep_last=99, commit_timeout_seconds=60, asynchronous=False
    )


def write_sources(folder: Path) -> list[Path]:
    """A run with one checkpoint for each stage and world size, each of another state."""
    return [
        zero_layouts.write(
            folder / f"{number:02}_{stage}_{world_size}" / "checkpoints" / step_name(1),
            zero_layouts.some_state(SHAPES, SEED + number),
            SHAPES,
            stage,
            world_size,
        )
        for number, (stage, world_size) in enumerate(zero_layouts.CASES)
    ]
