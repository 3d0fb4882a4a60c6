import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.checkpoint import layout
from electra_dist.checkpoint.layout import CorruptCheckpoint, Manifest, ShardRecord
from electra_dist.errors import UserError

STATE = json.dumps({"step": 12, "position": 384}).encode()
MANIFEST = Manifest(
    format_version=layout.FORMAT_VERSION,
    step=12,
    parameters={"tower.weight": [3, 4], "tower.bias": [4]},
    shards=[ShardRecord(file="shard_00000.safetensors", bytes=300, block_hashes=["00ff"])],
    state_xxh3_128=xxhash.xxh3_128_hexdigest(STATE),
)


def commit(folder: Path, manifest: Manifest = MANIFEST, state: bytes = STATE) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(layout.manifest_text(manifest))
    (folder / "state.json").write_bytes(state)
    return folder


def test_names_are_those_of_the_contract(tmp_path: Path) -> None:
    assert layout.step_name(1000) == "step_00001000"
    assert layout.step_name(123_456_789) == "step_123456789"
    assert layout.shard_name(3) == "shard_00003.safetensors"
    assert layout.checkpoints_folder(tmp_path) == tmp_path / "checkpoints"


def test_only_complete_checkpoints_are_listed_oldest_first(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert layout.list_checkpoints(tmp_path) == []
    assert layout.list_temporaries(tmp_path) == []
    for name in ("step_100000000", "step_00000900", "step_99999999", "step_00001000"):
        commit(folder / name)
    for name in ("step_00002000.tmp-1", "step_00003000.bad", "step_00004000.abandoned", "step_7"):
        commit(folder / name)
    (folder / "step_00005000").mkdir()  # without a manifest
    (folder / "step_00006000").write_text("not a folder")
    found = layout.list_checkpoints(tmp_path)
    assert [info.step for info in found] == [900, 1000, 99_999_999, 100_000_000]
    assert [info.folder.name for info in found][:2] == ["step_00000900", "step_00001000"]
    assert [path.name for path in layout.list_temporaries(tmp_path)] == ["step_00002000.tmp-1"]


def test_a_user_may_name_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    old = commit(tmp_path / "checkpoints/step_00000010")
    new = commit(tmp_path / "checkpoints/step_00000020")
    bad = commit(tmp_path / "checkpoints/step_00000030.bad")
    assert layout.resolve(tmp_path).folder == new
    assert (layout.resolve(old).step, layout.resolve(old).folder) == (10, old)
    assert layout.resolve(bad).step == 30  # asked for by name, it is looked at
    moved = commit(tmp_path / "elsewhere/step_00000040")
    assert layout.resolve(moved).step == 40


@pytest.mark.parametrize("name", ["", "checkpoints", "checkpoints/step_00000011", "nowhere"])
def test_what_is_no_checkpoint_is_refused_with_what_to_give(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints/step_00000011").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"neither a complete checkpoint nor a run folder.*give RUN"
    ):
        layout.resolve(tmp_path / name)


def test_the_manifest_reads_back(tmp_path: Path) -> None:
    folder = commit(tmp_path / "step_00000012")
    assert layout.read_manifest(folder) == MANIFEST
    assert MANIFEST.num_bytes == 300
    assert layout.read_state(folder, MANIFEST) == {"step": 12, "position": 384}


def test_any_changed_byte_of_the_manifest_is_noticed(tmp_path: Path) -> None:
    folder = commit(tmp_path / "step_00000012")
    path = folder / "manifest.json"
    text = path.read_bytes()
    for place in range(len(text)):
        for bit in (0, 5):
            changed = bytearray(text)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(CorruptCheckpoint):
                layout.read_manifest(folder)
    path.write_bytes(text[:-20])
    with pytest.raises(CorruptCheckpoint, match=r"manifest.json cannot be read"):
        layout.read_manifest(folder)
    path.unlink()
    with pytest.raises(CorruptCheckpoint, match=r"manifest.json cannot be read"):
        layout.read_manifest(folder)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{}", '{"checksum": "0"}'])
def test_what_is_no_manifest_is_corrupt(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CorruptCheckpoint, match=r"manifest.json"):
        layout.read_manifest(tmp_path)


def test_a_newer_format_is_not_called_corrupt(tmp_path: Path) -> None:
    newer = replace(MANIFEST, format_version=layout.FORMAT_VERSION + 1)
    with pytest.raises(UserError, match=r"format version 3, .* reads up to 2; install a newer one"):
        layout.read_manifest(commit(tmp_path / "step_00000012", newer))


def test_a_state_that_is_not_the_manifests_is_noticed(tmp_path: Path) -> None:
    folder = commit(tmp_path / "step_00000012", state=STATE.replace(b"384", b"385"))
    with pytest.raises(CorruptCheckpoint, match=r"state.json is damaged"):
        layout.read_state(folder, MANIFEST)
    (folder / "state.json").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"state.json cannot be read"):
        layout.read_state(folder, MANIFEST)


def cut(name: str, size: int, cuts: list[int]) -> list[tuple[str, int, int]]:
    ends = sorted({0, size, *(c % (size + 1) for c in cuts)})
    return [(name, a, b) for a, b in pairwise(ends)]


PARAMETERS = {"w": [3, 4], "b": [5], "scale": []}
SIZES = {"w": 12, "b": 5, "scale": 1}
Ranges = list[tuple[str, int, int]]


@st.composite
def whole_coverings(draw: st.DrawFn) -> Ranges:
    cuts = st.lists(st.integers(0, 100), max_size=5)
    ranges = [
        piece
        for parameter, size in SIZES.items()
        for kind in layout.KINDS
        for piece in cut(f"{parameter}/{kind}", size, draw(cuts))
    ]
    return draw(st.permutations(ranges))


@given(whole_coverings(), st.data())
@settings(max_examples=80, deadline=None)
def test_a_gap_an_overlap_or_a_stranger_is_found(ranges: Ranges, data: st.DataObject) -> None:
    assert layout.uncovered(PARAMETERS, ranges) == []
    index = data.draw(st.integers(0, len(ranges) - 1))
    name, start, stop = ranges[index]
    missing = ranges[:index] + ranges[index + 1 :]
    assert [words.split(":")[0] for words in layout.uncovered(PARAMETERS, missing)] == [name]
    for twice in ([*ranges, (name, start, stop)], [(name, start, stop), *ranges]):
        assert [words.split(":")[0] for words in layout.uncovered(PARAMETERS, twice)] == [name]
    longer = [*missing, (name, start, stop + 1)]
    assert [words.split(":")[0] for words in layout.uncovered(PARAMETERS, longer)] == [name]
    if stop - start > 1:
        shorter = [*missing, (name, start, stop - 1)]
        assert [words.split(":")[0] for words in layout.uncovered(PARAMETERS, shorter)] == [name]
    for stranger in ("w/exp_avg_max", "other/master", "w"):
        problems = layout.uncovered(PARAMETERS, [*ranges, (stranger, 0, 2)])
        assert problems == [f"{stranger}: not a parameter of this model"]


def test_an_overlap_that_ends_where_the_tensor_ends_is_found() -> None:
    ranges = [(f"b/{kind}", 0, 5) for kind in layout.KINDS]
    for again in ((0, 5), (3, 5), (4, 5), (0, 1)):
        problems = layout.uncovered({"b": [5]}, [*ranges, ("b/master", *again)])
        assert len(problems) == 1
        assert problems[0].startswith("b/master: ")
