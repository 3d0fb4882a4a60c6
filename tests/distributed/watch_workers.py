"""What the ranks of the attribution tests do: steps that sleep, one rank of them too long."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from electra_dist.config.running import ResilienceConfig
from electra_dist.resilience.faults import Faults, parse_faults
from electra_dist.resilience.stragglers import Stragglers
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.collectives import ProcessGroups
from electra_dist.runtime.phases import Phases

SECONDS = {"data": 0.004, "forward": 0.008, "backward": 0.012, "save": 0.004}
"""How long the phases of a healthy step sleep."""


def sleeping_steps(groups: ProcessGroups, faults: str, num_steps: int) -> list[Any]:
    """Who was named, and for which phase, after each step; None: nobody.

    Each step exchanges gradients in the middle and agrees at its end, as real ones do.
    """
    phases = Phases()
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
        with phases.enter("optimizer"), phases.enter("agree"):
            groups.control.all_reduce_sum([1.0])
        with phases.enter("save"):
            time.sleep(SECONDS["save"])
        late = stragglers.compare(step, lambda *_, **__: None)
        named.append([late[0].rank, late[0].phase] if late else None)
    return named
