"""`plan`: what a run will need."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING

from electra_dist.errors import UserError

if TYPE_CHECKING:
    from electra_dist.config.activations import Device


def plan(args: argparse.Namespace, overrides: list[str]) -> int:
    """Say what a run will need: parameters, FLOPs, memory, traffic, checkpoints, time."""
    from electra_dist.config import files
    from electra_dist.launch.plan import STATED_TFLOPS, Assumptions, Cluster, make_plan
    from electra_dist.launch.plan_text import render

    config = files.load(args.config, overrides, recipe=args.recipe)
    device: Device = args.device or ("cpu" if args.gpus_per_node is None else "cuda")
    given = {
        name: getattr(args, name)
        for name in (
            "tflops",
            "mfu",
            "mtbf_hours",
            "write_gb_per_s",
            "copy_gb_per_s",
            "restart_minutes",
        )
        if getattr(args, name) is not None
    }
    for name, value in given.items():
        if not 0 < value < math.inf or (name == "mfu" and value > 1):
            option = f"--{name.replace('_', '-')}"
            most = " and at most 1" if name == "mfu" else ""
            raise UserError(f"{option} {value:g} must be above 0{most}; give a usual figure")
    stated = STATED_TFLOPS.get((device, config.engine.precision), STATED_TFLOPS["cpu", "fp32"])
    document = make_plan(
        config,
        Cluster(nodes=args.nodes, gpus_per_node=args.gpus_per_node or 1, device=device),
        Assumptions(**{"tflops": stated, **given}),
    )
    print(json.dumps(document, indent=2) if args.json else render(document))
    return 0
