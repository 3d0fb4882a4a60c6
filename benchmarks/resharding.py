"""Reading a checkpoint of 2 ranks into other worlds and stages, beside DeepSpeed's universal way.

    python benchmarks/resharding.py [--recipe base] [--rounds 3] [--no-alone] [--folder D] [--json]

2 ranks save one random state (weights and both moments of the joint model), by our store and by
DeepSpeed's save_checkpoint. Then 1 and 4 ranks at ZeRO-2 read it, in turns:

    ours        CheckpointStore.restore: the blocks of this rank's ranges are checked, then copied
    DeepSpeed   ds_to_universal --inject_missing_state, then load_checkpoint with load_universal

seconds: from a checkpoint on disk, dropped from the page cache as far as the system obeys, until
all ranks hold the state. Engines are up, and so is the converter: its start (imports) does not
count. Memory: the peak beyond what a rank has with its engine, moments touched, largest and summed
over ranks; for the converter, its processes together, beyond its imports. As the converter and the
load follow one another, the greater of the two is DeepSpeed's. Memory is measured in a first round,
which is not timed. After every read each element is compared with the state that was saved.

Across ZeRO-3 and ZeRO-0 DeepSpeed's way fails: its message is shown, and ours is measured alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers import universal  # noqa: E402
from electra_dist.checkpoint.store import CheckpointStore  # noqa: E402
from electra_dist.config.recipes import RECIPES  # noqa: E402
from electra_dist.config.schema import BatchConfig, EngineConfig, RunConfig  # noqa: E402
from electra_dist.engine.deepspeed import DeepSpeedEngine  # noqa: E402
from electra_dist.engine.protocol import Engine  # noqa: E402
from electra_dist.model.electra import JointElectra  # noqa: E402
from electra_dist.runtime.attempt import Attempt  # noqa: E402
from electra_dist.runtime.collectives import ProcessGroups  # noqa: E402
from tests.distributed.ranks import run_ranks  # noqa: E402

PAIRS = [(2, 2, 1), (2, 2, 4)]
"""(stage that wrote, stage that reads, ranks that read): what both can do."""
OURS_ALONE = [(2, 3, 2), (3, 2, 1), (2, 0, 1), (0, 2, 2), (3, 0, 1)]
FAILING = {(2, 3, 2), (3, 2, 1), (2, 0, 1)}
"""Of those, the ones at which DeepSpeed's way is tried once."""
WRITERS = 2


def a_config(recipe: str, stage: int) -> RunConfig:
    """A vocabulary of 30,522 and 4 micro-batches of 1: nothing is trained."""
    run = RECIPES[recipe]()
    return replace(
        run,
        model=replace(run.model, vocab_size=30522),
        batch=BatchConfig(global_batch_size=4, micro_batch_size=1),
        engine=EngineConfig(zero_stage=stage),  # type: ignore[arg-type]
    )


def an_engine(groups: ProcessGroups, recipe: str, stage: int) -> DeepSpeedEngine:
    """An engine of which every page has been touched."""
    config = a_config(recipe, stage)
    engine = DeepSpeedEngine(JointElectra(config), config, groups.world, groups.device)
    spoil(engine)
    return engine


def spoil(engine: Engine) -> None:
    """Other values than those that are read."""
    for fragment in engine.local_fragments():
        fragment.values.fill_(0.5)


def value_of(engine: Engine, parameter: str, kind: str) -> Tensor:
    """The saved state: a whole tensor, flat, from a seed in its name."""
    seed = hashlib.blake2b(f"{parameter}/{kind}".encode(), digest_size=4).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little"))
    shape = engine.parameter_shapes[parameter]
    return torch.rand(shape, generator=generator).view(-1)


def is_right(engine: Engine) -> bool:
    """Whether every element that this rank holds is the one that was saved."""
    return all(
        torch.equal(f.values, value_of(engine, f.parameter, f.kind)[f.start :][: len(f.values)])
        for f in engine.local_fragments()
    )


def a_store(groups: ProcessGroups, run: str) -> CheckpointStore:
    """Synchronous, of the run's first attempt."""
    attempt = Attempt.join(Path(run), 1)
    attempt.folder.mkdir(parents=True, exist_ok=True)
    return CheckpointStore(
        attempt, groups.control, keep_last=1, commit_timeout_seconds=600, asynchronous=False
    )


def write(groups: ProcessGroups, recipe: str, stage: int, folder: str) -> int:
    """Both checkpoints of one engine; the bytes of ours."""
    engine = an_engine(groups, recipe, stage)
    for f in engine.local_fragments():
        f.values.copy_(value_of(engine, f.parameter, f.kind)[f.start :][: len(f.values)])
    engine.state_restored()
    store = a_store(groups, folder)
    store.save(engine, 1, {})
    assert store.wait()
    store.close()
    universal.save(engine, Path(folder) / "native")
    engine.close()
    return sum(path.stat().st_size for path in Path(folder).glob("checkpoints/*/shard_*"))


def status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def drop_cache(folder: Path) -> None:
    """What is read next comes from the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measured(groups: ProcessGroups, read: Callable[[], object]) -> dict[str, float]:
    """Seconds until all ranks are done, and the peak of memory: largest, and summed over ranks."""
    groups.control.barrier("benchmark")
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    started = time.perf_counter()
    read()
    groups.control.barrier("benchmark")
    seconds = time.perf_counter() - started
    peaks = groups.control.all_gather_objects(status("VmHWM") - before)
    return {"seconds": seconds, "largest": max(peaks), "sum": sum(peaks)}


def read(
    groups: ProcessGroups,
    recipe: str,
    stage: int,
    folder: str,
    rounds: int,
    with_peer: str,
) -> dict[str, Any]:
    """Both ways in turns. `with_peer`: "measured", "tried" once after ours, or "no"."""
    engine = an_engine(groups, recipe, stage)
    native = Path(folder) / "native"
    store = a_store(groups, folder)
    results: dict[str, Any] = {"ours": []}

    def peer(*, measure_memory: bool) -> dict[str, float]:
        converted = {"seconds": 0.0, "bytes": 0.0}
        if groups.world.is_leader:
            drop_cache(native)
            converted = universal.convert(native, measure_memory=measure_memory)
        converted = groups.control.broadcast_json(converted)
        loaded = measured(groups, lambda: universal.load(engine, native))
        return {
            "seconds": converted["seconds"] + loaded["seconds"],
            "convert": converted["seconds"],
            "largest": max(converted["bytes"], loaded["largest"]),
            "sum": max(converted["bytes"], loaded["sum"]),
        }

    def ours() -> dict[str, float]:
        if groups.world.is_leader:
            drop_cache(Path(folder) / "checkpoints")
        return measured(groups, lambda: store.restore(engine, engine.parameter_shapes))

    for number in range(rounds + 1):
        ways = {"ours": ours}
        if with_peer == "measured":
            ways["deepspeed"] = lambda first=(number == 0): peer(measure_memory=first)
        for name, way in list(ways.items())[:: 1 if number % 2 else -1]:
            spoil(engine)
            results.setdefault(name, []).append(way())
            assert is_right(engine), f"{name} gave another state"
            if groups.world.is_leader:
                print(number, name, results[name][-1], file=sys.stderr)
    if with_peer == "tried":
        spoil(engine)
        try:
            peer(measure_memory=False)
            results["failure"] = "none" if is_right(engine) else "another state, without a word"
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            words = str(error).strip().splitlines() or [f"assert in {place.name}: {place.line}"]
            results["failure"] = f"{type(error).__name__}: {words[0]}"
    engine.close()
    return results


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Memory of the first round, seconds of the others."""
    seconds = [one["seconds"] for one in rounds[1:]]
    first = {name: rounds[0][name] for name in ("largest", "sum")}
    return {"seconds": seconds, "median": statistics.median(seconds), **first}


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    seconds = found["seconds"]
    spread = f"{found['median']:.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
    mib = [f"{found[key] / 2**20:,.1f}" for key in ("largest", "sum")]
    return f"{name:42}{spread:>26}{mib[0]:>12}{mib[1]:>12}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="base", choices=sorted(RECIPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-alone", action="store_true", help="only what DeepSpeed can do too")
    parser.add_argument("--folder", type=Path, help="where to save: the disk that is measured")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cases = PAIRS if args.no_alone else [*PAIRS, *OURS_ALONE]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        for wrote in sorted({case[0] for case in cases}, reverse=True):
            source = folder / f"stage_{wrote}"
            options = {"recipe": args.recipe, "folder": str(source)}
            size = run_ranks(
                "benchmarks.resharding:write", WRITERS, folder / "logs", stage=wrote, **options
            )[0]
            for case in cases:
                if case[0] != wrote:
                    continue
                title = f"{WRITERS} ranks ZeRO-{wrote} to {case[2]} ZeRO-{case[1]}"
                print(title, file=sys.stderr)
                with_peer = "measured" if case in PAIRS else "tried" if case in FAILING else "no"
                found[title] = run_ranks(
                    "benchmarks.resharding:read",
                    case[2],
                    folder / "logs",
                    timeout_seconds=3600,
                    stage=case[1],
                    rounds=args.rounds,
                    with_peer=with_peer,
                    **options,
                )[0]
    if args.json:
        print(json.dumps({"bytes": size, "cases": found}))
        return
    print(f"{args.recipe}: {size / 2**20:,.0f} MiB of weights and moments")
    print(f"{'':42}{'seconds, median':>26}{'MiB a rank':>12}{'MiB in all':>12}")
    for title, ways in found.items():
        mine = summary(ways["ours"])
        print(row(f"{title}, ours", mine))
        if "deepspeed" in ways:
            theirs = summary(ways["deepspeed"])
            convert = statistics.median(one["convert"] for one in ways["deepspeed"][1:])
            print(row(f"{title}, DeepSpeed", theirs))
            print(
                f"    {theirs['median'] / mine['median']:.1f} times as fast (target: 5; of "
                f"DeepSpeed's {convert:.2f} s is the conversion), memory a rank 1/"
                f"{theirs['largest'] / mine['largest']:.0f}, in all 1/"
                f"{theirs['sum'] / mine['sum']:.0f} (target: 1/5)"
            )
        if "failure" in ways:
            print(f"    DeepSpeed: {ways['failure']}")


if __name__ == "__main__":
    main()
