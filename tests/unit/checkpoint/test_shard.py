import json
import mmap
from contextlib import closing
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from electra_dist.checkpoint import shard
from electra_dist.checkpoint.layout import CorruptCheckpoint, ShardRecord
from electra_dist.checkpoint.shard import Piece, ShardReader, write_shard


def values(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


PIECES = [
    Piece("tower.weight/master", 40, values(17)),
    Piece("tower.weight/exp_avg", 40, values(17, 1)),
    Piece("tower.bias/master", 0, values(3, 2)),
    Piece("empty/master", 7, values(0)),
]


def read_piece(reader: ShardReader, piece: Piece, low: int, high: int) -> np.ndarray:
    found = {one.name: one for one in reader.ranges()}[piece.name]
    assert (found.start, found.stop) == (piece.start, piece.start + len(piece.values))
    return np.frombuffer(reader.read(found.first_byte + 4 * low, 4 * (high - low)), "<f4")


def test_any_safetensors_reader_opens_a_shard(tmp_path: Path) -> None:
    record = write_shard(tmp_path / "shard_00000.safetensors", PIECES)
    assert (tmp_path / record.file).stat().st_size == record.bytes
    with safe_open(tmp_path / record.file, "np") as file:
        assert set(file.keys()) == {piece.name for piece in PIECES}
        for piece in PIECES:
            tensor = file.get_tensor(piece.name)
            assert tensor.dtype == np.float32
            np.testing.assert_array_equal(tensor, piece.values)
        ranges = json.loads(file.metadata()["ranges"])
    assert ranges == {p.name: [p.start, p.start + len(p.values)] for p in PIECES}


def test_values_start_on_eight_bytes(tmp_path: Path) -> None:
    for size in range(1, 9):
        record = write_shard(tmp_path / "a", [Piece("n" * size, 0, values(3))])
        header = int.from_bytes((tmp_path / record.file).read_bytes()[:8], "little")
        assert header % 8 == 0


@given(
    sizes=st.lists(st.integers(0, 90), min_size=1, max_size=5),
    block_bytes=st.sampled_from([8, 64, 100, 256, 4096]),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_any_range_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    block_bytes: int,
    data: st.DataObject,
) -> None:
    starts = data.draw(st.lists(st.integers(0, 2**40), min_size=5, max_size=5))
    pieces = [Piece(f"p{i}/master", starts[i], values(n, i)) for i, n in enumerate(sizes)]
    folder = tmp_path_factory.getbasetemp()
    # Blocks of a few bytes, so that ranges start, end and lie within any of them.
    with mock.patch.object(shard, "BLOCK_BYTES", block_bytes):
        record = write_shard(folder / "property.safetensors", pieces)
        assert len(record.block_hashes) == -(-record.bytes // block_bytes)
        with closing(ShardReader(folder, record)) as reader:
            reader.verify()
            for piece in pieces:
                low = data.draw(st.integers(0, len(piece.values)))
                high = data.draw(st.integers(low, len(piece.values)))
                found = read_piece(reader, piece, low, high)
                assert found.tobytes() == piece.values[low:high].tobytes()


def test_values_that_are_not_contiguous_or_not_little_endian_are_written_right(
    tmp_path: Path,
) -> None:
    matrix = values(24).reshape(4, 6)
    pieces = [
        Piece("column/master", 0, matrix[:, 2]),
        Piece("big/master", 0, values(4).astype(">f4")),
    ]
    reader = ShardReader(tmp_path, write_shard(tmp_path / "a.safetensors", pieces))
    np.testing.assert_array_equal(read_piece(reader, pieces[0], 0, 4), matrix[:, 2])
    np.testing.assert_array_equal(read_piece(reader, pieces[1], 0, 4), values(4))
    reader.close()


def test_not_a_number_infinity_and_minus_zero_keep_their_bits(tmp_path: Path) -> None:
    bits = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0x80000000, 0x00000001], np.uint32)
    piece = Piece("w/master", 0, bits.view(np.float32))
    reader = ShardReader(tmp_path, write_shard(tmp_path / "a.safetensors", [piece]))
    assert read_piece(reader, piece, 0, 5).view(np.uint32).tolist() == bits.tolist()
    reader.close()


def read_all(folder: Path, record: ShardRecord, pieces: list[Piece]) -> None:
    with closing(ShardReader(folder, record)) as reader:
        for piece in pieces:
            read_piece(reader, piece, 0, len(piece.values))


def test_every_single_flipped_bit_is_found_before_a_value_is_handed_out(tmp_path: Path) -> None:
    pieces = [Piece("w/master", 5, values(6)), Piece("w/exp_avg", 5, values(2))]
    path = tmp_path / "a.safetensors"
    record = write_shard(path, pieces)
    data = path.read_bytes()
    read_all(tmp_path, record, pieces)
    with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as bytes_on_disk:
        for bit in range(8 * len(data)):
            bytes_on_disk[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CorruptCheckpoint, match=r"block 0 .* is damaged"):
                read_all(tmp_path, record, pieces)
            bytes_on_disk[bit // 8] ^= 1 << bit % 8
    read_all(tmp_path, record, pieces)


def test_damage_is_found_in_its_block_and_other_blocks_stay_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "BLOCK_BYTES", 512)
    piece = Piece("w/master", 0, values(1000))
    path = tmp_path / "a.safetensors"
    record = write_shard(path, [piece])
    damaged = bytearray(path.read_bytes())
    damaged[3 * 512 + 5] ^= 1
    path.write_bytes(damaged)
    reader = ShardReader(tmp_path, record)
    for low in range(0, 1000, 50):
        first_byte = reader.ranges()[0].first_byte + 4 * low
        touched = range(first_byte // 512, (first_byte + 199) // 512 + 1)
        if 3 in touched:
            with pytest.raises(CorruptCheckpoint, match="block 3"):
                read_piece(reader, piece, low, low + 50)
        else:
            found = read_piece(reader, piece, low, low + 50)
            np.testing.assert_array_equal(found, piece.values[low : low + 50])
    with pytest.raises(CorruptCheckpoint, match="block 3"):
        reader.verify()
    reader.close()


@pytest.mark.parametrize("change", [-1, -200, 1])
def test_a_shard_of_another_size_is_not_opened(tmp_path: Path, change: int) -> None:
    path = tmp_path / "a.safetensors"
    record = write_shard(path, PIECES)
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"x")
    with pytest.raises(CorruptCheckpoint, match=f"has {record.bytes + change} bytes instead of"):
        ShardReader(tmp_path, record)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    record = write_shard(tmp_path / "a.safetensors", PIECES)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"a\.safetensors cannot be read"):
        ShardReader(tmp_path, record)


def test_a_shard_that_shrinks_while_it_is_open_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    record = write_shard(path, PIECES)
    reader = ShardReader(tmp_path, record)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptCheckpoint, match="block 0"):
        reader.verify()
    reader.close()


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write_shard(tmp_path / "whole.safetensors", PIECES)
    write = shard.os.write
    monkeypatch.setattr(shard.os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    found = write_shard(tmp_path / "pieces.safetensors", PIECES)
    assert found.block_hashes == expected.block_hashes
    files = (tmp_path / "whole.safetensors", tmp_path / "pieces.safetensors")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_two_ranges_of_one_tensor_are_refused(tmp_path: Path) -> None:
    # A file of named tensors can hold a name once: the first range would be lost in silence.
    twice = [Piece("w/master", 0, values(3)), Piece("w/master", 10, values(3))]
    with pytest.raises(AssertionError, match="w/master"):
        write_shard(tmp_path / "a.safetensors", twice)
