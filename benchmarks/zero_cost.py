"""What DeepSpeed costs where it has nothing to share: one rank, beside the reference engine.

    python benchmarks/zero_cost.py [--recipe small] [--micro-batch 16] [--rounds 9] [--json]
    python benchmarks/zero_cost.py --profile 2          the operations of a step of either engine

One process, two threads; the engines take turns, step by step, over the same micro-batches, and
every other round goes backwards. Medians of the rounds' ratios to the reference engine's step of
the same round. Target: at most 1.05 for the stage that the recipes use (2).

What a step sends on several ranks, by stage, is counted in tests/distributed/test_traffic.py.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from memory_of_run import micro_batches  # noqa: E402

from electra_dist.config import files  # noqa: E402
from electra_dist.config.schema import EngineConfig, RunConfig  # noqa: E402
from electra_dist.engine.protocol import Engine  # noqa: E402
from electra_dist.runtime.collectives import start_process_group  # noqa: E402
from electra_dist.runtime.memory import keep_freed_memory  # noqa: E402
from electra_dist.runtime.world import World  # noqa: E402
from electra_dist.train.build import make_engine  # noqa: E402

CPU = torch.device("cpu")
REFERENCE = "reference"


def make_engines(config: RunConfig, world: World, stages: list[int]) -> dict[str, Engine]:
    """The reference engine, and DeepSpeed's at each stage, from the same weights."""
    kinds = {REFERENCE: EngineConfig(kind="reference")}
    kinds |= {f"ZeRO {stage}": EngineConfig(zero_stage=stage) for stage in stages}  # type: ignore[arg-type]
    return {
        name: make_engine(replace(config, engine=engine), world, CPU)
        for name, engine in kinds.items()
    }


def measure(
    engines: dict[str, Engine], config: RunConfig, num_rounds: int
) -> dict[str, list[float]]:
    """Seconds of a step of each engine, by round; two rounds before them warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(num_rounds + 2):
        batch = micro_batches(config, number)
        for name, engine in list(engines.items())[:: 1 if number % 2 else -1]:
            started = time.perf_counter()
            engine.step(batch, 1e-4)
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def profile(engine: Engine, config: RunConfig) -> str:
    """The operations of one step, by their own time."""
    batch = micro_batches(config, 0)
    engine.step(batch, 1e-4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        engine.step(batch, 1e-4)
    table: str = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--passes", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--stages", type=int, nargs="*", default=[0, 1, 2, 3])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", type=int, metavar="STAGE")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    groups = start_process_group(World.from_environment({}), timeout_seconds=600.0, always=True)
    overrides = ["--batch.micro_batch_size", str(args.micro_batch), "--model.vocab_size", "30522"]
    overrides += ["--batch.global_batch_size", str(args.micro_batch * args.passes)]
    config = files.load(None, overrides, recipe=args.recipe)
    stages = args.stages if args.profile is None else [args.profile]
    engines = make_engines(config, groups.world, stages)
    if args.profile is not None:
        for name, engine in engines.items():
            print(name, profile(engine, config), sep="\n")
    else:
        report(measure(engines, config, args.rounds), as_json=args.json)
    groups.shutdown(graceful=True)


def report(seconds: dict[str, list[float]], *, as_json: bool) -> None:
    """Medians and ratios of the same round."""
    ratios = {
        name: [one / reference for one, reference in zip(values, seconds[REFERENCE], strict=True)]
        for name, values in seconds.items()
    }
    if as_json:
        print(json.dumps({"seconds": seconds, "ratios": ratios}))
        return
    print(f"{'':12}{'seconds a step':>28}{'to the reference engine':>28}")
    for name, values in seconds.items():
        cells = [
            f"{statistics.median(one):8.3f} ({min(one):.3f} to {max(one):.3f})"
            for one in (values, ratios[name])
        ]
        print(f"{name:12}" + "".join(f"{cell:>28}" for cell in cells))


if __name__ == "__main__":
    main()
