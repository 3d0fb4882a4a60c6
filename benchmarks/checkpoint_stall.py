"""How long a save holds up training, and what hashing costs, at the size of the `base` recipe.

    python benchmarks/checkpoint_stall.py [--recipe base] [--folder DIR] [--json]

One rank, CPU, three fp32 tensors a parameter (weights and Adam's moments), saved once to warm up
and then five times (saves 2 to 6). The ways to save are interleaved, each save after the one before
has reached the disk, as in a run whose saves lie far apart; every other round goes backwards.
Buffers are touched before the first save. `blocked` is what the training thread waits for, `done`
the time until the state is on disk.

What hashing costs is measured apart, in memory (`--memory`, /dev/shm), where nothing hides it: on a
disk the time of one and the same save drifts by 40 % here, hashes change it by less. Saves with and
without alternate; the median of their differences is set against a synchronous save on the disk.

torch.save and torch.distributed.checkpoint neither fsync, hash nor read back as they are called
here, which is how they are called everywhere; ours does all three.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from electra_dist.checkpoint import shard  # noqa: E402
from electra_dist.checkpoint.layout import KINDS  # noqa: E402
from electra_dist.checkpoint.store import CheckpointStore  # noqa: E402
from electra_dist.config.recipes import RECIPES  # noqa: E402
from electra_dist.engine.protocol import Fragment  # noqa: E402
from electra_dist.model.electra import JointElectra  # noqa: E402
from electra_dist.runtime.attempt import Attempt  # noqa: E402
from electra_dist.runtime.control import Control  # noqa: E402
from electra_dist.runtime.world import World  # noqa: E402

NUM_SAVES = 6
NUM_HASHING_PAIRS = 20
Way = Callable[[int], tuple[float, float]]
"""Save number i: (seconds blocked, seconds until done)."""


class State:
    """Weights and moments of a joint model; as much of an engine as a store needs."""

    device = torch.device("cpu")

    def __init__(self, recipe: str) -> None:
        config = RECIPES[recipe]()
        config = replace(config, model=replace(config.model, vocab_size=30522))
        model = JointElectra(config)
        self.parameter_shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        self.tensors = {
            f"{name}/{kind}": torch.randn(shape)
            for name, shape in self.parameter_shapes.items()
            for kind in KINDS
        }
        self.num_bytes = sum(4 * tensor.numel() for tensor in self.tensors.values())

    def owned_fragments(self) -> Iterator[Fragment]:
        """Everything: this rank is alone."""
        for key, tensor in self.tensors.items():
            name, kind = key.rsplit("/", 1)
            yield Fragment(name, kind, 0, tensor.view(-1))


def no_hashing(chunks: list[memoryview]) -> list[str]:
    """As many hashes as the reader expects, of nothing."""
    return [""] * -(-sum(map(len, chunks)) // shard.BLOCK_BYTES)


def empty_digest(_: bytes) -> str:
    """What a reader finds where nothing was hashed."""
    return ""


NO_HASHING = {
    "hash_blocks": no_hashing,
    "xxhash": mock.Mock(xxh3_64_hexdigest=empty_digest),
}


def ours(
    state: State, folder: Path, *, asynchronous: bool, patch: dict[str, object] | None = None
) -> Way:
    """A store of its own, one checkpoint kept."""
    world = World.from_environment({})
    store = CheckpointStore(
        Attempt.claim(folder),
        Control(group=None, store=None, world=world, timeout_seconds=600),
        keep_last=1,
        commit_timeout_seconds=600,
        asynchronous=asynchronous,
    )
    store.prepare(state)  # type: ignore[arg-type]

    def save(number: int) -> tuple[float, float]:
        with mock.patch.multiple(shard, **patch) if patch else nullcontext():
            started = time.perf_counter()
            store.save(state, number, {})  # type: ignore[arg-type]
            blocked = time.perf_counter() - started
            assert store.wait()
            return blocked, time.perf_counter() - started

    return save


def torch_save(state: State, folder: Path) -> Way:
    """One file, overwritten."""

    def save(_: int) -> tuple[float, float]:
        started = time.perf_counter()
        torch.save(state.tensors, folder / "state.pt")
        return (time.perf_counter() - started,) * 2

    return save


def torch_dcp(state: State, folder: Path, *, asynchronous: bool) -> Way:
    """torch.distributed.checkpoint on one rank; its async_save as its tutorial calls it."""

    def save(number: int) -> tuple[float, float]:
        path = str(folder / f"{number}")
        started = time.perf_counter()
        if asynchronous:
            future = dcp.async_save(state.tensors, checkpoint_id=path)
            blocked = time.perf_counter() - started
            future.result()
        else:
            dcp.save(state.tensors, checkpoint_id=path)
            blocked = time.perf_counter() - started
        done = time.perf_counter() - started
        shutil.rmtree(path)
        return blocked, done

    return save


def measure(state: State, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of saves 2 to 6 of each way, interleaved."""
    names = ("ours async", "ours sync", "torch.save", "dcp", "dcp async")
    places = {name: folder / name.replace(" ", "_") for name in names}
    for place in places.values():
        place.mkdir()
    ways: dict[str, Way] = {
        "ours async": ours(state, places["ours async"], asynchronous=True),
        "ours sync": ours(state, places["ours sync"], asynchronous=False),
        "torch.save": torch_save(state, places["torch.save"]),
        "dcp": torch_dcp(state, places["dcp"], asynchronous=False),
        "dcp async": torch_dcp(state, places["dcp async"], asynchronous=True),
    }
    seconds: dict[str, dict[str, list[float]]] = {n: {"blocked": [], "done": []} for n in ways}
    for number in range(1, NUM_SAVES + 1):
        for name, way in list(ways.items())[:: 1 if number % 2 else -1]:
            gc.collect()
            os.sync()  # what the one before left to the page cache is not this one's work
            blocked, done = way(number)
            print(f"save {number}  {name:22} {blocked:8.3f} {done:8.3f}", file=sys.stderr)
            if number > 1:
                seconds[name]["blocked"].append(blocked)
                seconds[name]["done"].append(done)
    return seconds


def hashing_seconds(state: State, folder: Path) -> list[float]:
    """How much longer a synchronous save takes with hashes, in pairs that alternate."""
    patches = {"with": None, "without": NO_HASHING}
    saves = {}
    for name, patch in patches.items():
        (folder / name).mkdir()
        saves[name] = ours(state, folder / name, asynchronous=False, patch=patch)
    differences = []
    for number in range(1, NUM_HASHING_PAIRS + 3):
        order = ("with", "without") if number % 2 else ("without", "with")
        done = {name: saves[name](number)[1] for name in order}
        differences.append(done["with"] - done["without"])
    return differences[2:]  # the first two touch memory that the machine has never given out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="base", choices=sorted(RECIPES))
    parser.add_argument("--folder", type=Path, help="where to save: the disk that is measured")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="a tmpfs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    state = State(args.recipe)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        dist.init_process_group(
            "gloo", store=dist.FileStore(str(Path(folder) / "store"), 1), rank=0, world_size=1
        )
        seconds = measure(state, Path(folder))
        with tempfile.TemporaryDirectory(dir=args.memory) as memory:
            hashing = hashing_seconds(state, Path(memory))
        dist.destroy_process_group()
    median = {n: {k: statistics.median(v) for k, v in s.items()} for n, s in seconds.items()}
    stall = median["ours async"]["blocked"] / median["ours sync"]["blocked"]
    cost = statistics.median(hashing)
    share = cost / median["ours sync"]["done"]
    if args.json:
        ratios = {"async blocked / sync blocked": stall, "hashing / sync": share}
        seconds["hashing, in memory"] = {"more": hashing}
        print(json.dumps({"bytes": state.num_bytes, "seconds": seconds, "ratios": ratios}))
        return
    print(f"{args.recipe}: {state.num_bytes / 2**20:,.0f} MiB, seconds, median (min to max)")
    print(f"{'':24}{'blocked':>26}{'done':>26}")
    for name, kinds in seconds.items():
        cells = [
            f"{statistics.median(values):8.3f} ({min(values):.3f} to {max(values):.3f})"
            for values in kinds.values()
        ]
        print(f"{name:24}" + "".join(f"{cell:>26}" for cell in cells))
    print(f"an asynchronous save blocks for {stall:.1%} of a synchronous one (target: under 10 %)")
    print(
        f"hashing: {cost:.3f} s ({min(hashing):.3f} to {max(hashing):.3f}) more for a save in "
        f"memory, {share:.1%} of a synchronous one on this disk (target: under 5 %)"
    )


if __name__ == "__main__":
    main()
