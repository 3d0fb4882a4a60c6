"""What the ranks of the attribution tests do: steps that sleep, one rank of them too long."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from electra_dist.config.running import ResilienceConfig
from electra_dist.engine.deepspeed import DeepSpeedEngine
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.electra import JointElectra
from electra_dist.resilience.faults import Faults, parse_faults
from electra_dist.resilience.stragglers import Straggler, Stragglers
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.collectives import ProcessGroups
from electra_dist.runtime.phases import Current, Phases
from tests.distributed.synthetic import micro_batches, tiny_config

CPU = torch.device("cpu")

SECONDS = {"data": 0.004, "forward": 0.008, "backward": 0.012, "save": 0.004}
"""How long the phases of a healthy step sleep."""


def sleeping_steps(groups: ProcessGroups, faults: str, num_steps: int) -> list[Any]:
    """Who was named, and for which phase, after each step; None: nobody.

    Each step exchanges gradients in the middle and agrees at its end, as real ones do.
    """
    groups.control.phases = phases = Phases()
    attempt = Attempt.join(Path("run"), 1)
    mine = Faults(parse_faults(faults), groups.world.rank, attempt, nn.Linear(1, 1))
    phases.on_enter.append(mine.entered)
    hosts = ["here"] * groups.world.world_size
    config = ResilienceConfig(straggler_every=1)
    stragglers = Stragglers(phases, groups.control, hosts, config)
    gradients = torch.ones(1000)
    named: list[Any] = []
    for step in range(1, num_steps + 1):
        phases.begin_step(step)
        for phase in ("data", "forward", "backward"):
            with phases.enter(phase):
                time.sleep(SECONDS[phase])
        with phases.enter("reduce"):
            dist.all_reduce(gradients)
        with phases.enter("optimizer"):
            groups.control.all_reduce_sum([1.0])
        with phases.enter("save"):
            time.sleep(SECONDS["save"])
        late = stragglers.compare(step, lambda *_, **__: None)
        named.append([late[0].rank, late[0].phase] if late else None)
    return named


def late_in_real_engines(groups: ProcessGroups, variants: list[dict[str, Any]]) -> list[Any]:
    """For each engine: who is named where rank 1 sleeps in each forward pass of a step."""
    named: list[Any] = []
    for variant in variants:
        config = tiny_config(**variant)
        kind = ReferenceEngine if config.engine.kind == "reference" else DeepSpeedEngine
        groups.control.phases = phases = Phases()
        engine = kind(JointElectra(config), config, groups.world, CPU, phases=phases)
        told = Stragglers(phases, groups.control, ["here"] * 2, ResilienceConfig(straggler_every=1))
        late: list[Straggler] = []
        for step in range(1, 4):
            if step == 2 and groups.world.rank == 1:  # the first step allocates and is slow
                phases.on_enter.append(sleep_in_forward)
            phases.begin_step(step)
            mine = micro_batches(config, step - 1, groups.world.rank, groups.world.world_size)
            engine.step(mine, 1e-3)
            late = told.compare(step, lambda *_, **__: None)
        named.append([[one.rank, one.phase] for one in late])
        engine.close()
    return named


def sleep_in_forward(current: Current) -> None:
    """Half a second: enough for an optimizer of a busy machine not to be it."""
    if current.phase == "forward":
        time.sleep(0.5)
