"""What each objective, and each way of sharing and sampling, costs: one training step of `small`.

    python benchmarks/objectives.py [--rounds 5] [--threads 2] [--clock cpu] [--json]

12 x 256, generator 12 x 64, L 128, 16 rows without padding, V 30522, dropout 0.1; the reference
engine's step, from a micro-batch to new weights. All take turns in every round; ratios are the
medians of a round's ratios to `electra`. Beside them stands the ratio of model FLOPs that
`electra-dist plan` gives (usual convention).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers import joint_rows  # noqa: E402
from benchmarks.peers.turns import CLOCKS, interleave, ratio, turn  # noqa: E402
from electra_dist.config.accounting import num_parameters  # noqa: E402
from electra_dist.config.flops import flops_of_row  # noqa: E402
from electra_dist.config.schema import RunConfig  # noqa: E402
from electra_dist.engine.reference import ReferenceEngine  # noqa: E402
from electra_dist.model.electra import JointElectra  # noqa: E402
from electra_dist.runtime.cpu import compute_on_cpu  # noqa: E402
from electra_dist.runtime.world import World  # noqa: E402

SPECIAL_IDS = {
    "pad": 0,
    "unk": 1,
    "cls": joint_rows.CLS,
    "sep": joint_rows.SEP,
    "mask": joint_rows.MASK,
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "electra": {},
    "electric": {"objective": {"name": "electric"}},
    "uniform_generator": {"objective": {"name": "uniform_generator"}},
    "mlm": {"objective": {"name": "mlm"}},
    "gradient_disentangled": {"model": {"embedding_sharing": "gradient_disentangled"}},
    "untied_generator_embeddings": {"model": {"untied_generator_embeddings": True}},
    "one transformer": {"model": {"untied_generator": False}},
    "no sampling_dropout": {"objective": {"sampling_dropout": False}},
    "disallow_correct": {"objective": {"disallow_correct": True}},
    "temperature 2": {"objective": {"temperature": 2.0}},
}


def variant(config: RunConfig, knobs: dict[str, dict[str, Any]]) -> RunConfig:
    """The config with these knobs, set at once, as they are checked together."""
    return replace(
        config, **{name: replace(getattr(config, name), **knobs[name]) for name in knobs}
    )


def measure(rounds: int, clock: str) -> dict[str, Any]:
    """Seconds of each variant's steps, and ratios to `electra`."""
    configs = {name: variant(joint_rows.small(), knobs) for name, knobs in VARIANTS.items()}
    rows = joint_rows.full_rows(configs["electra"])
    steps = {}
    for name, config in configs.items():
        engine = ReferenceEngine(
            JointElectra(config, SPECIAL_IDS),
            config,
            World.from_environment({}),
            torch.device("cpu"),
        )
        steps[name] = turn(lambda one=engine: one.step([rows], learning_rate=1e-5), clock)
    seconds = interleave(steps, rounds)
    flops = {name: flops_of_row(config) for name, config in configs.items()}
    return {
        "seconds": seconds,
        "time_ratio": {name: ratio(seconds[name], seconds["electra"]) for name in configs},
        "flops_ratio": {name: one / flops["electra"] for name, one in flops.items()},
        "parameters": {name: num_parameters(one)["joint"] for name, one in configs.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    compute_on_cpu(args.threads, 2**33)  # as a run does, for all its engines
    found = measure(args.rounds, args.clock)
    if args.json:
        print(json.dumps({"threads": args.threads, "clock": args.clock, **found}))
        return
    print(f"{'':30}{'seconds (min to max)':>26}{'time':>8}{'FLOPs':>8}{'parameters':>13}")
    for name, values in found["seconds"].items():
        spread = f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        print(
            f"{name:30}{spread:>26}{found['time_ratio'][name]:8.2f}"
            f"{found['flops_ratio'][name]:8.2f}{found['parameters'][name]:13,}"
        )


if __name__ == "__main__":
    main()
