"""What a rank reads at a restore, and the memory that it takes."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.checkpoint import reshard, restore, shard
from electra_dist.checkpoint.layout import BLOCK_BYTES, KINDS, CorruptCheckpoint
from electra_dist.checkpoint.reshard import CheckpointReader, Wanted
from electra_dist.engine.protocol import Fragment
from electra_dist.runtime.attempt import Attempt
from tests import zero_layouts
from tests.unit.checkpoint.fake_engine import a_store, saved

ROOT = Path(__file__).parents[3]
Shapes = dict[str, tuple[int, ...]]


class ShardedEngine:
    """One rank of a ZeRO stage without DeepSpeed: what it holds, and what it saves of a state."""

    device = torch.device("cpu")

    def __init__(
        self, shapes: Shapes, state: dict[str, np.ndarray], stage: int, ranks: int, rank: int
    ) -> None:
        self.parameter_shapes = shapes
        self._state, self._case = state, (stage, ranks, rank)
        self.held = [
            Fragment(name, kind, start, torch.full((stop - start,), -1.0))
            for name, start, stop in zero_layouts.local(shapes, *self._case)
            for kind in KINDS
        ]

    def local_fragments(self) -> Iterator[Fragment]:
        return iter(self.held)

    def owned_fragments(self) -> Iterator[Fragment]:
        ranges = zero_layouts.owned(self.parameter_shapes, *self._case)
        for name, start, values in zero_layouts.pieces(self._state, ranges):
            parameter, kind = name.rsplit("/", 1)
            yield Fragment(parameter, kind, start, torch.from_numpy(values))

    def state_restored(self) -> None: ...

    def assert_holds(self, state: dict[str, np.ndarray]) -> None:
        """The oracle: slices of the whole tensors, bit for bit."""
        for name, kind, start, values in self.held:
            whole = state[f"{name}/{kind}"][start : start + len(values)]
            assert values.numpy().tobytes() == whole.tobytes(), (self._case, name, kind)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 70)), min_size=2, max_size=6).filter(
        lambda drawn: len({is_bias for is_bias, _ in drawn}) == 2
    ),
    st.sampled_from([64, 100, 256]),
)
@settings(max_examples=2, deadline=None)
def test_every_stage_and_world_size_to_every_other(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[bool, int]], block_bytes: int
) -> None:
    """16 x 16 pairs through real stores, odd sizes, blocks and windows of a few bytes."""
    shapes: Shapes = {
        f"p{n}.{'bias' if is_bias else 'weight'}": (size,)
        for n, (is_bias, size) in enumerate(drawn)
    }
    folder = tmp_path_factory.mktemp("matrix")
    with (
        mock.patch.object(shard, "BLOCK_BYTES", block_bytes),
        mock.patch.object(reshard, "WINDOW_BYTES", 3 * block_bytes),
        mock.patch.object(os, "fsync"),  # 320 shards, and none has to outlive the power
    ):
        states = {}
        for number, case in enumerate(zero_layouts.CASES):
            run = folder / str(number)
            states[run] = zero_layouts.some_state(shapes, number)
            attempt = Attempt.claim(run)
            stage, ranks = case
            for rank in reversed(range(ranks)):
                engine = ShardedEngine(shapes, states[run], stage, ranks, rank)
                store = a_store(attempt, rank=rank, ranks=ranks)
                assert saved(store, engine, 1, {"from": list(case)})  # type: ignore[arg-type]
        for number, (run, (stage, ranks)) in enumerate(product(states, zero_layouts.CASES)):
            rank = number // len(zero_layouts.CASES) % ranks  # each in turn: all have several
            engine = ShardedEngine(shapes, states[run], stage, ranks, rank)
            store = a_store(Attempt.join(run, 1))
            assert store.restore(engine, shapes)  # type: ignore[arg-type]
            store.close()
            engine.assert_holds(states[run])


BIG: Shapes = {"a.weight": (700, 1001), "b.bias": (5,), "c.weight": (611_111,), "d.bias": (3001,)}


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """16 MB, written by 4 ranks of ZeRO-2."""
    state = zero_layouts.some_state(BIG, 1)
    return zero_layouts.write(tmp_path_factory.mktemp("big") / "c", state, BIG, 2, 4), state


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each (file, offset) is read from, and no read is of more than a block."""
    counted: Counter[tuple[str, int]] = Counter()
    real = os.pread

    def pread(descriptor: int, num_bytes: int, offset: int) -> bytes:
        assert num_bytes <= BLOCK_BYTES
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        data = real(descriptor, num_bytes, offset)
        if data:
            counted[name, offset] += 1
        return data

    monkeypatch.setattr(os, "pread", pread)
    return counted


@pytest.mark.parametrize(("stage", "ranks"), [*zero_layouts.CASES, (2, 7), (3, 64)])
def test_a_rank_reads_the_blocks_of_its_own_ranges_once_to_check_and_once_to_fill(
    four_ranks: tuple[Path, dict[str, np.ndarray]],
    reads: Counter[tuple[str, int]],
    stage: int,
    ranks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reshard, "WINDOW_BYTES", 2 * BLOCK_BYTES)
    folder, state = four_ranks
    for rank in range(ranks):
        engine = ShardedEngine(BIG, state, stage, ranks, rank)
        with CheckpointReader(folder) as reader:
            # The oracle: element by range, where the manifest says that it lies.
            needed, num_edges, share = set(), 0, 0
            for f in engine.held:
                share += 4 * len(f.values)
                for record in reader.manifest.shards:
                    assert record.ranges is not None
                    start, stop, first_byte = record.ranges.get(
                        f"{f.parameter}/{f.kind}", (0, 0, 0)
                    )
                    low, high = max(start, f.start), min(stop, f.start + len(f.values))
                    if low < high:
                        num_edges += 2
                        first, last = (first_byte + 4 * (n - start) for n in (low, high))
                        blocks = range(first // BLOCK_BYTES, (last - 1) // BLOCK_BYTES + 1)
                        needed |= {(record.file, block * BLOCK_BYTES) for block in blocks}
            for deed in (restore.check, restore.fill):
                reads.clear()
                deed(reader, engine.local_fragments())
                assert set(reads) == needed
                assert set(reads.values()) <= {1}
                assert reads.total() * BLOCK_BYTES <= share + num_edges * BLOCK_BYTES
        engine.assert_holds(state)


def test_shards_that_hold_nothing_of_a_rank_are_not_opened(
    tmp_path: Path, reads: Counter[tuple[str, int]]
) -> None:
    state = zero_layouts.some_state(BIG, 1)
    folder = zero_layouts.write(tmp_path / "c", state, BIG, 2, 4)
    for number in (0, 2, 3):
        (folder / f"shard_{number:05d}.safetensors").unlink()
    engine = ShardedEngine(BIG, state, 2, 4, 1)
    with CheckpointReader(folder) as reader:
        restore.check(reader, engine.local_fragments())
        restore.fill(reader, engine.local_fragments())
    engine.assert_holds(state)
    assert {name for name, _ in reads} == {"shard_00001.safetensors"}


@pytest.mark.parametrize("num_elements", [1, 7, 13, 1000])
def test_state_on_a_device_is_filled_in_batches_through_one_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_elements: int
) -> None:
    monkeypatch.setattr(restore, "STAGING_ELEMENTS", num_elements)
    shapes: Shapes = {"a.weight": (5, 3), "b.bias": (2,), "c.weight": (4,)}
    state = zero_layouts.some_state(shapes, 3)
    folder = zero_layouts.write(tmp_path / "c", state, shapes, 3, 2)
    engine = ShardedEngine(shapes, state, 0, 1, 0)
    with CheckpointReader(folder) as reader:
        restore.fill_through_host(reader, engine.held)
        restore.fill_through_host(reader, [])
    engine.assert_holds(state)


def test_ranges_that_no_shard_holds_are_refused_before_anything_is_read(
    four_ranks: tuple[Path, dict[str, np.ndarray]], reads: Counter[tuple[str, int]]
) -> None:
    with CheckpointReader(four_ranks[0]) as reader:
        for wanted in (Wanted("b.bias/master", 2, 6), Wanted("nobody/master", 0, 1)):
            with pytest.raises(CorruptCheckpoint, match=f"{wanted.name} holds"):
                reader.check([Wanted("a.weight/master", 0, 9), wanted])
    assert not reads


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_reader_of_very_many_shards_keeps_few_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reshard, "MAX_OPEN_SHARDS", 3)
    shapes: Shapes = {"a.weight": (20, 5)}
    state = zero_layouts.some_state(shapes, 3)
    folder = zero_layouts.write(tmp_path / "c", state, shapes, 3, 10)
    before = open_files()
    with CheckpointReader(folder) as reader:
        for kind in KINDS:
            found = reader.read_whole("a.weight", kind)
            assert found.tobytes() == state[f"a.weight/{kind}"].tobytes()
            assert open_files() == before + 3


PEAK = """
import json, sys
from pathlib import Path
import torch
from electra_dist.checkpoint import restore
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.engine.protocol import Fragment
from electra_dist.checkpoint.layout import KINDS
from tests import zero_layouts

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

folder, stage, ranks, rank = Path(sys.argv[1]), *map(int, sys.argv[2:])
with CheckpointReader(folder) as reader:
    shapes = {name: tuple(shape) for name, shape in reader.manifest.parameters.items()}
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
held = [
    Fragment(name, kind, start, torch.empty(stop - start))
    for name, start, stop in zero_layouts.local(shapes, stage, ranks, rank)
    for kind in KINDS
]
with CheckpointReader(folder) as reader:
    restore.check(reader, held)
    checked = status("VmHWM") - before
    restore.fill(reader, held)
share = sum(4 * len(fragment.values) for fragment in held)
print(json.dumps({"share": share, "checked": checked, "filled": status("VmHWM") - before}))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("num_parameters", "allowed", "readers"),
    [
        (9_000_000, 32 << 20, [(2, 1)]),
        pytest.param(80_000_000, 64 << 20, [(2, 1), (2, 4), (3, 3)], marks=pytest.mark.slow),
    ],
)
def test_memory_stays_within_the_share_and_a_few_blocks(
    num_parameters: int, allowed: int, readers: list[tuple[int, int]], tmp_path: Path
) -> None:
    """Issue: within 256 MB beside the share. 108 MB on disk, slow: 960 MB, from 2 ranks ZeRO-2."""
    rows = num_parameters // 3 // 512
    shapes: Shapes = {"a.weight": (rows, 512), "b.weight": (rows, 1024), "b.bias": (512,)}
    folder = zero_layouts.write(tmp_path / "c", zero_layouts.some_state(shapes, 1), shapes, 2, 2)
    whole = 12 * sum(math.prod(shape) for shape in shapes.values())
    for stage, ranks in readers:
        command = [sys.executable, "-c", PEAK, str(folder), str(stage), str(ranks), "0"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        print(stage, ranks, {name: f"{value / 2**20:.1f} MiB" for name, value in found.items()})
        assert found["share"] == pytest.approx(whole / ranks, rel=1e-3)
        assert found["checked"] < allowed  # nothing is kept before all have agreed
        assert found["filled"] < found["share"] + allowed
