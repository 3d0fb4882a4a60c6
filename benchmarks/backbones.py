"""A step of `small` by backbone, and with the word table padded or not, interleaved.

    python benchmarks/backbones.py [--rounds 9] [--threads 1] [--json]

12 x 256, generator 12 x 64, 16 made-up rows of up to 128 tokens, V 30522, dropout 0.1, reference
engine, from a micro-batch to new weights. CPU seconds, which other work disturbs less; the cases
take turns (`peers/turns.py`), and ratios are medians of a round's ratios.
`the same again` is the first case a second time: what a ratio of 1 looks like here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peers.turns import interleave, ratio, turn
from electra_dist.config.accounting import num_parameters
from electra_dist.config.flops import flops_of_row
from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import BatchConfig, EngineConfig, RunConfig
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.cpu import compute_on_cpu
from electra_dist.runtime.world import World
from tests.distributed.synthetic import micro_batches


def config_of(backbone: Literal["bert", "modern"], multiple: int) -> RunConfig:
    """`small` with 16 rows in one micro-batch."""
    run = RECIPES["small"]()
    return replace(
        run,
        model=replace(
            run.model, backbone=backbone, vocab_size=30522, pad_vocab_to_multiple_of=multiple
        ),
        batch=BatchConfig(global_batch_size=16, micro_batch_size=16),
        engine=EngineConfig(kind="reference"),
    )


def measure(cases: dict[str, RunConfig], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a step, a number a round."""
    world, device = World.from_environment({}), torch.device("cpu")
    engines = {
        name: ReferenceEngine(JointElectra(config), config, world, device)
        for name, config in cases.items()
    }
    rows = {name: micro_batches(config, 0, 0, 1) for name, config in cases.items()}
    turns = {
        name: turn(partial(engine.step, rows[name], 1e-4), "cpu")
        for name, engine in engines.items()
    }
    return interleave(turns, rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    compute_on_cpu(args.threads, 2**33)  # as a run does, for all its engines
    cases = {
        "bert": config_of("bert", 64),
        "bert, the same again": config_of("bert", 64),
        "bert, table not padded": config_of("bert", 1),
        "modern": config_of("modern", 64),
    }
    seconds = measure(cases, args.rounds)
    base = seconds["bert"]
    found = {
        name: {
            "cpu_seconds": statistics.median(one),
            "low": min(one),
            "high": max(one),
            "ratio": ratio(one, base),
            "flops_ratio": flops_of_row(cases[name]) / flops_of_row(cases["bert"]),
            "parameters": num_parameters(cases[name])["joint"],
        }
        for name, one in seconds.items()
    }
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'a step of small':24} {'CPU s':>6} {'low-high':>12} {'ratio':>6} {'FLOPs':>6}")
    for name, one in found.items():
        spread = f"{one['low']:.2f}-{one['high']:.2f}"
        print(
            f"{name:24} {one['cpu_seconds']:6.3f} {spread:>12} {one['ratio']:6.3f} "
            f"{one['flops_ratio']:6.3f}"
        )


if __name__ == "__main__":
    main()
