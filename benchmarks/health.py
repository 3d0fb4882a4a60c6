"""What watching a run costs, and how often it is mistaken about a healthy one.

    python benchmarks/health.py [--recipe small] [--run RUN ...] [--json]

The cost is that of hashing what ranks share, as a share of the time of a step; at ZeRO 1 and 2 it
is a third, for moments are not shared there. RUN is a run without known faults, made with
`--metrics.log_every 1` and `--resilience.spike_deviations None`: its losses and gradient norms are
judged again, step by step, with each number of deviations.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from electra_dist.config.recipes import RECIPES  # noqa: E402 (the tests' batches are beside us)
from electra_dist.config.running import ResilienceConfig  # noqa: E402
from electra_dist.engine.reference import ReferenceEngine  # noqa: E402
from electra_dist.model.electra import JointElectra  # noqa: E402
from electra_dist.resilience.health import (  # noqa: E402
    Recent,
    Vitals,
    find,
    spike_limit,
)
from electra_dist.resilience.replicas import tensor_hash  # noqa: E402
from electra_dist.runtime.files import read_json_lines  # noqa: E402
from electra_dist.runtime.world import World  # noqa: E402
from tests.distributed.synthetic import VOCAB_SIZE, micro_batches  # noqa: E402

DEVIATIONS = (4.0, 6.0, 8.0, 12.0, 16.0)
ROUNDS = 5


def cost(recipe: str) -> dict[str, Any]:
    """Seconds of a step of one micro-batch, of hashing, and of the judgement of a step."""
    config = RECIPES[recipe]()
    size = config.batch.micro_batch_size
    config = replace(
        config,
        model=replace(config.model, vocab_size=VOCAB_SIZE),
        batch=replace(config.batch, global_batch_size=size),
    )
    world = World.from_environment({})
    engine = ReferenceEngine(JointElectra(config), config, world, torch.device("cpu"))
    steps, hashes = [], []
    for step in range(ROUNDS):
        batch = micro_batches(config, step, 0, 1)
        started = time.perf_counter()
        engine.step(batch, 1e-4)
        stepped = time.perf_counter()
        for _, tensor in engine.shared_tensors():
            tensor_hash(tensor)
        hashes.append(time.perf_counter() - stepped)
        steps.append(stepped - started)
    recent = Recent(losses=tuple(map(float, range(128))), grad_norms=tuple(map(float, range(128))))
    started = time.perf_counter()
    for _ in range(1000):
        find(Vitals(1.0, 1.0), recent, ResilienceConfig())
    judged = (time.perf_counter() - started) / 1000
    hashed, stepped = statistics.median(hashes), statistics.median(steps)
    every = ResilienceConfig().compare_replicas_every
    assert every is not None
    return {
        "recipe": recipe,
        "samples_a_step": size,
        "step_seconds": stepped,
        "hash_seconds": hashed,
        "share_of_a_run": hashed / (every * stepped),
        "judgement_seconds": judged,
    }


def alarms(run: Path) -> dict[str, Any]:
    """False alarms by number of deviations, and the farthest that a healthy step went."""
    lines = read_json_lines(run / "metrics.jsonl")
    counts = dict.fromkeys(DEVIATIONS, 0)
    farthest = 0.0
    for deviations in DEVIATIONS:
        config = ResilienceConfig(spike_deviations=deviations)
        recent = Recent()
        for line in lines:
            vitals = Vitals(float(line["loss"]), float(line["grad_norm"]))
            if find(vitals, recent, config) is None:
                recent = recent.after(vitals, config.spike_window_steps)
            else:
                counts[deviations] += 1
            for value, past in zip(vitals, (recent.losses, recent.grad_norms), strict=True):
                limit = spike_limit(past, config)
                if math.isfinite(limit) and deviations == DEVIATIONS[-1]:
                    middle = statistics.median(past)
                    farthest = max(farthest, deviations * (value - middle) / (limit - middle))
    return {"run": str(run), "steps": len(lines), "alarms": counts, "farthest": farthest}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--run", type=Path, nargs="*", default=[])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {"cost": cost(arguments.recipe), "runs": [alarms(run) for run in arguments.run]}
    if arguments.json:
        print(json.dumps(found))
        return
    cost_found = found["cost"]
    assert isinstance(cost_found, dict)
    for name, value in cost_found.items():
        print(f"{name:>18}  {value:.3g}" if isinstance(value, float) else f"{name:>18}  {value}")
    for one in found["runs"]:
        assert isinstance(one, dict)
        words = "  ".join(f"{k:g}: {n}" for k, n in one["alarms"].items())
        print(f"{one['run']}: {one['steps']} steps, alarms by deviations {words}")
        print(f"  the farthest step lay {one['farthest']:.1f} deviations above its median")


if __name__ == "__main__":
    main()
