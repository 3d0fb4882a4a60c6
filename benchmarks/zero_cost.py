"""What DeepSpeed costs where it has nothing to share: one rank, beside the reference engine.

    python benchmarks/zero_cost.py [--recipe small] [--micro-batch 16] [--rounds 9] [--json]
    python benchmarks/zero_cost.py --profile "ZeRO 2"   the operations of a step

A process and two threads an engine: DeepSpeed's stage 3 puts a `linear` of its own into torch, for
whatever else runs there. They take turns over the same micro-batches, every other round backwards:
a turn is two steps, of which the second counts. Medians of the rounds' ratios to the reference
engine's step. Target: at most 1.05 for the stage that the recipes use (2).

What a step sends on several ranks, by stage, is counted in tests/distributed/test_traffic.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from memory_of_run import micro_batches  # noqa: E402

from benchmarks.peers.turns import Turn, in_process, interleave, serve, turn  # noqa: E402
from electra_dist.config import files  # noqa: E402
from electra_dist.config.memory import memory_of_rank  # noqa: E402
from electra_dist.config.schema import EngineConfig, RunConfig  # noqa: E402
from electra_dist.engine.protocol import Engine  # noqa: E402
from electra_dist.runtime.collectives import start_process_group  # noqa: E402
from electra_dist.runtime.cpu import compute_on_cpu  # noqa: E402
from electra_dist.runtime.world import World  # noqa: E402
from electra_dist.train.build import make_engine  # noqa: E402

CPU = torch.device("cpu")
REFERENCE = "reference"


def engine_config(name: str) -> EngineConfig:
    """The reference engine's, or DeepSpeed's at the stage that `name` ends in."""
    if name == REFERENCE:
        return EngineConfig(kind="reference")
    return EngineConfig(zero_stage=int(name.split()[-1]))  # type: ignore[arg-type]


@contextmanager
def engine_of(name: str, config: RunConfig, num_threads: int) -> Iterator[Engine]:
    """The engine in a group of one rank; threads and memory are as a run has them."""
    config = replace(config, engine=engine_config(name))
    compute_on_cpu(num_threads, memory_of_rank(config, world_size=1, device="cpu").total)
    groups = start_process_group(World.from_environment({}), timeout_seconds=600.0, always=True)
    with redirect_stdout(sys.stderr):  # where DeepSpeed logs from its import on
        engine = make_engine(config, groups.world, CPU)
    yield engine
    groups.shutdown(graceful=True)


def over_new_batches(engine: Engine, config: RunConfig) -> Turn:
    """Turns, each with micro-batches of its own."""
    rounds = itertools.count()

    def take() -> float:
        batch = micro_batches(config, next(rounds))
        return turn(lambda: engine.step(batch, 1e-4))()

    return take


def measure(names: list[str], arguments: list[str], num_rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each engine, by round."""
    with ExitStack() as stack:
        turns = {
            name: stack.enter_context(in_process(__file__, *arguments, "--serve", name))
            for name in names
        }
        return interleave(turns, num_rounds)


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
    parser.add_argument("--profile", metavar="ENGINE", help="reference, or as: ZeRO 2")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", metavar="ENGINE", help="be one of the processes")
    args = parser.parse_args()
    overrides = ["--batch.micro_batch_size", str(args.micro_batch), "--model.vocab_size", "30522"]
    overrides += ["--batch.global_batch_size", str(args.micro_batch * args.passes)]
    config = files.load(None, overrides, recipe=args.recipe)
    if args.serve is not None:
        with engine_of(args.serve, config, args.threads) as engine:
            serve(over_new_batches(engine, config))
    elif args.profile is not None:
        with engine_of(args.profile, config, args.threads) as engine:
            print(profile(engine, config))
    else:
        names = [REFERENCE, *(f"ZeRO {stage}" for stage in args.stages)]
        report(measure(names, sys.argv[1:], args.rounds), as_json=args.json)


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
