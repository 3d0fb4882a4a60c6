"""A lost or damaged file of a checkpoint is rebuilt from the others, bit for bit."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.checkpoint import parity, shard
from electra_dist.checkpoint.layout import CorruptCheckpoint, read_manifest
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.cli import main
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import read_json_lines
from tests.unit.checkpoint.fake_engine import DictEngine, a_store, names, restored

FILES = [*(f"shard_{rank:05d}.safetensors" for rank in range(3)), "parity.xor"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (parity, shard):
        monkeypatch.setattr(module, "BLOCK_BYTES", 256)


def write(run: Path, num_shards: int = 3) -> Path:
    attempt = Attempt.claim(run)
    for rank in reversed(range(num_shards)):
        store = a_store(attempt, rank=rank, ranks=num_shards, parity=True)
        store.save(DictEngine(5, rank=rank, ranks=num_shards), 10, {"step": 10})
        assert store.wait()
        store.close()
    return run / "checkpoints/step_00000010"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["lost", "cut", "longer", "zeros", "first bit", "last bit"])
def test_any_one_file_comes_back(run: Path, name: str, how: str) -> None:
    folder = write(run)
    before = contents(folder)
    assert sorted(before) == ["manifest.json", "parity.xor", *FILES[:3], "state.json"]
    data = bytearray(before[name])
    if how == "lost":
        (folder / name).unlink()
    else:
        data = {
            "cut": data[:-300],
            "longer": data + b"x",
            "zeros": bytearray(len(data)),
            "first bit": bytearray([data[0] ^ 1, *data[1:]]),
            "last bit": bytearray([*data[:-1], data[-1] ^ 1]),
        }[how]
        (folder / name).write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match=name), CheckpointReader(folder) as reader:
        reader.verify()
    assert parity.repair(folder) == [name]
    assert contents(folder) == before
    assert parity.repair(folder) == []


def test_one_block_a_row_may_be_damaged_in_different_files(run: Path) -> None:
    folder = write(run)
    before = contents(folder)
    for row, name in enumerate(FILES[:3]):
        data = bytearray(before[name])
        data[256 * row + 7] ^= 0x40
        (folder / name).write_bytes(data)
    assert parity.repair(folder) == FILES[:3]
    assert contents(folder) == before


def test_two_in_one_row_are_too_many_and_nothing_is_touched(run: Path) -> None:
    folder = write(run)
    # The first could be rebuilt: the row in which the others are damaged is beyond its damage.
    for name, place in zip(FILES[:3], (5, 300, 301), strict=True):
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 1
        (folder / name).write_bytes(data)
    damaged = contents(folder)
    with pytest.raises(CorruptCheckpoint):
        parity.repair(folder)
    assert contents(folder) == damaged


@given(st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=12)
def test_any_number_of_shards(
    tmp_path_factory: pytest.TempPathFactory, num_shards: int, seed: int
) -> None:
    folder = write(tmp_path_factory.mktemp("parity") / "run", num_shards)
    before = contents(folder)
    name = random.Random(seed).choice([n for n in before if not n.endswith(".json")])
    (folder / name).unlink()
    assert parity.repair(folder) == [name]
    assert contents(folder) == before


def test_a_restore_repairs_and_says_so(run: Path) -> None:
    folder = write(run)
    (folder / FILES[1]).unlink()
    engine, state = restored(a_store(Attempt.claim(run)))
    assert state == {"step": 10}
    assert engine.equals(5)
    assert names(run) == ["step_00000010"]
    event = read_json_lines(run / "events.jsonl")[-1]
    assert (event["event"], event["checkpoint"]) == ("repair", "step_00000010")
    assert event["files"] == [FILES[1]]
    assert FILES[1] in event["cause"]


def test_verify_repairs_when_it_is_asked_to(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(run)
    (folder / FILES[0]).unlink()
    assert main(["checkpoint", "verify", str(folder)]) == 1
    assert main(["checkpoint", "verify", str(folder), "--repair"]) == 0
    assert "shard_00000.safetensors: rebuilt" in capsys.readouterr().out
    assert main(["checkpoint", "verify", str(folder)]) == 0


def test_without_a_parity_file_the_message_says_so(run: Path) -> None:
    store = a_store(Attempt.claim(run))
    store.save(DictEngine(1), 10, {})
    assert store.wait()
    store.close()
    folder = run / "checkpoints/step_00000010"
    assert read_manifest(folder).parity is None
    with pytest.raises(CorruptCheckpoint, match=r"without a parity file \(checkpoint\.parity\)"):
        parity.repair(folder)
