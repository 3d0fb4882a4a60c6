import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.checkpoint import layout
from electra_dist.checkpoint.layout import KINDS, CorruptCheckpoint, Manifest
from electra_dist.checkpoint.reshard import CheckpointReader, differences
from electra_dist.checkpoint.shard import Piece, write_shard

SHAPES = {"tower.weight": (6, 7), "tower.bias": (5,), "temperature": ()}
State = dict[str, np.ndarray]


def a_state(seed: int = 0) -> State:
    """`<parameter>/<kind>` to a flat array."""
    rng = np.random.default_rng(seed)
    return {
        f"{name}/{kind}": rng.standard_normal(math.prod(shape)).astype(np.float32)
        for name, shape in SHAPES.items()
        for kind in KINDS
    }


def write_checkpoint(
    folder: Path,
    state: State,
    cuts: Sequence[Sequence[float]],
    step: int = 3,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
) -> Path:
    """Shard r holds the elements between the shares cuts[t][r] and cuts[t][r + 1] of tensor t."""
    folder.mkdir(parents=True)
    records = []
    for rank in range(len(cuts[0]) - 1):
        pieces = []
        for (name, array), shares in zip(state.items(), cuts, strict=False):
            start, stop = (round(share * len(array)) for share in shares[rank : rank + 2])
            if stop > start:
                pieces.append(Piece(name, start, array[start:stop]))
        records.append(write_shard(folder / layout.shard_name(rank), pieces))
    (folder / "state.json").write_bytes(b"{}")
    manifest = Manifest(
        format_version=layout.FORMAT_VERSION,
        step=step,
        parameters={name: list(shape) for name, shape in shapes.items()},
        shards=records,
        state_xxh3_128=xxhash.xxh3_128_hexdigest(b"{}"),
    )
    (folder / "manifest.json").write_text(layout.manifest_text(manifest))
    return folder


def even(num_shards: int) -> list[list[float]]:
    return [[rank / num_shards for rank in range(num_shards + 1)]] * (len(SHAPES) * len(KINDS))


@st.composite
def cuts(draw: st.DrawFn) -> list[list[float]]:
    """Every tensor cut at other places, into as many pieces; some are empty."""
    num_shards = draw(st.integers(1, 5))
    shares = st.lists(st.floats(0, 1), min_size=num_shards - 1, max_size=num_shards - 1)
    return [[0.0, *sorted(draw(shares)), 1.0] for _ in range(len(SHAPES) * len(KINDS))]


@given(cuts(), st.data())
@settings(max_examples=40, deadline=None)
def test_any_range_is_the_same_from_any_sharding(
    tmp_path_factory: pytest.TempPathFactory, shares: list[list[float]], data: st.DataObject
) -> None:
    state = a_state()
    folder = write_checkpoint(tmp_path_factory.mktemp("cut") / "c", state, shares)
    with CheckpointReader(folder) as reader:
        reader.verify()
        for name, shape in SHAPES.items():
            for kind in KINDS:
                whole = state[f"{name}/{kind}"]
                low = data.draw(st.integers(0, len(whole)))
                high = data.draw(st.integers(low, len(whole)))
                found = reader.read_range(name, kind, low, high)
                assert found.tobytes() == whole[low:high].tobytes()
                np.testing.assert_array_equal(reader.read_whole(name, kind), whole.reshape(shape))
                assert reader.read_whole(name, kind).shape == shape
    assert reader.manifest.step == 3
    assert reader.state == {}


@given(cuts())
@settings(max_examples=20, deadline=None)
def test_shardings_of_one_state_are_identical(
    tmp_path_factory: pytest.TempPathFactory, shares: list[list[float]]
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    one = write_checkpoint(folder / "one", a_state(), even(1))
    other = write_checkpoint(folder / "other", a_state(), shares)
    assert differences(one, other) == []


def test_a_difference_is_named_with_its_place_count_and_size(tmp_path: Path) -> None:
    state = a_state()
    state["tower.weight/master"][[3, 40]] = [1.0, 2.0]
    one = write_checkpoint(tmp_path / "one", state, even(2))
    changed = {name: array.copy() for name, array in state.items()}
    changed["tower.weight/master"][[3, 40]] = [1.5, 2.25]
    changed["tower.bias/exp_avg_sq"][0] += np.float32(1e-3)
    other = write_checkpoint(tmp_path / "other", changed, even(3))
    assert differences(one, other) == [
        "tower.bias/exp_avg_sq: 1 of 5 elements differ, at most by 0.001",
        "tower.weight/master: 2 of 42 elements differ, at most by 0.5",
    ]


def test_bits_count_not_values(tmp_path: Path) -> None:
    state = a_state()
    state["tower.bias/master"][:3] = [0.0, np.nan, np.inf]
    one = write_checkpoint(tmp_path / "one", state, even(2))
    same = write_checkpoint(tmp_path / "same", state, even(1))
    assert differences(one, same) == []  # equal NaNs are equal
    changed = {name: array.copy() for name, array in state.items()}
    changed["tower.bias/master"][0] = -0.0
    other = write_checkpoint(tmp_path / "other", changed, even(2))
    assert differences(one, other) == ["tower.bias/master: 1 of 5 elements differ, at most by 0"]
    for value, largest in ((np.nan, "nan"), (1.0, "inf"), (-np.inf, "inf")):
        changed["tower.bias/master"][:3] = [0.0, np.nan, value]
        broken = write_checkpoint(tmp_path / f"broken {value}", changed, even(2))
        expected = f"tower.bias/master: 1 of 5 elements differ, at most by {largest}"
        assert differences(one, broken) == [expected]


def test_steps_shapes_and_missing_parameters_are_differences(tmp_path: Path) -> None:
    one = write_checkpoint(tmp_path / "one", a_state(), even(1))
    later = write_checkpoint(tmp_path / "later", a_state(), even(1), step=4)
    assert differences(one, later) == ["step: 3 and 4"]
    shapes = {**SHAPES, "tower.weight": (7, 6)}
    reshaped = write_checkpoint(tmp_path / "reshaped", a_state(), even(1), shapes=shapes)
    assert differences(one, reshaped) == ["tower.weight: shape [6, 7] and [7, 6]"]
    del shapes["tower.weight"]
    smaller = write_checkpoint(tmp_path / "smaller", a_state(), even(1), shapes=shapes)
    assert differences(one, smaller) == ["tower.weight: shape [6, 7] and None"]
    assert differences(smaller, one) == ["tower.weight: shape None and [6, 7]"]


def test_a_range_that_no_shard_holds_is_corrupt(tmp_path: Path) -> None:
    state = a_state()
    shares = even(2)
    shares[0] = [0.0, 0.5, 0.8]
    folder = write_checkpoint(tmp_path / "c", state, shares)
    with CheckpointReader(folder) as reader:
        found = reader.read_range("tower.weight", "master", 0, 30)
        assert found.tobytes() == state["tower.weight/master"][:30].tobytes()
        with pytest.raises(
            CorruptCheckpoint, match=r"tower.weight/master holds 34 of the elements"
        ):
            reader.read_whole("tower.weight")


@pytest.mark.parametrize("rank", [0, 2])
def test_damage_in_any_shard_is_found_by_whoever_reads_it(tmp_path: Path, rank: int) -> None:
    folder = write_checkpoint(tmp_path / "c", a_state(), even(3))
    path = folder / layout.shard_name(rank)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    size = math.prod(SHAPES["tower.weight"])
    for reading in range(3):
        low, high = round(reading * size / 3), round((reading + 1) * size / 3)
        with CheckpointReader(folder) as reader:
            if reading == rank:
                with pytest.raises(CorruptCheckpoint, match=layout.shard_name(rank)):
                    reader.read_range("tower.weight", "master", low, high)
            else:
                reader.read_range("tower.weight", "master", low, high)
    path.unlink()
    with pytest.raises(CorruptCheckpoint, match=layout.shard_name(rank)):
        differences(folder, folder)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_reader_opens_the_shards_that_it_needs_and_closes_them(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", a_state(), even(3))
    before = open_files()
    with CheckpointReader(folder) as reader:
        assert open_files() == before
        reader.read_range("tower.weight", "master", 0, 20)
        assert open_files() == before + 2
        reader.verify()
        assert open_files() == before + 2
    assert open_files() == before
    (folder / layout.shard_name(2)).unlink()
    with CheckpointReader(folder) as reader:
        reader.read_range("tower.weight", "master", 0, 20)  # the lost one is not asked for
        with pytest.raises(CorruptCheckpoint, match=r"shard_00002.* cannot be read"):
            reader.verify()
    assert open_files() == before


def test_the_manifest_that_is_read_is_the_one_that_was_written(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", a_state(), even(2))
    with CheckpointReader(folder) as reader:
        assert reader.manifest.num_bytes == sum(p.stat().st_size for p in folder.glob("shard_*"))
        text = layout.manifest_text(replace(reader.manifest, step=9))
    (folder / "manifest.json").write_text(text)
    with CheckpointReader(folder) as reader:
        assert reader.manifest.step == 9
