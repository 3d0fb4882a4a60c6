import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import xxhash

from electra_dist.data import store
from electra_dist.errors import UserError


def arrays() -> dict[str, store.Array]:
    return {
        "tokens": np.arange(7, dtype=np.uint16),
        "offsets": np.array([0, 3, 7], np.int64),
        "bits": np.array([1, 2, 255], np.uint8),
        "wide": np.arange(6, dtype=np.uint32).reshape(2, 3),
        "uniform": np.linspace(0, 1, 5, dtype=np.float32),
        "empty": np.zeros(0, np.uint16),
    }


def test_arrays_come_back_as_read_only_views_of_the_file(tmp_path: Path) -> None:
    store.write_arrays(tmp_path / "a.safetensors", arrays())
    back = store.read_arrays(tmp_path / "a.safetensors")
    assert back.keys() == arrays().keys()
    for name, array in arrays().items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
        assert not back[name].flags.writeable
        base = back[name]
        while not isinstance(base, np.memmap) and isinstance(base.base, np.ndarray):
            base = base.base
        assert isinstance(base, np.memmap)


def test_the_file_is_plain_safetensors_and_its_record_is_true(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    record = store.write_arrays(path, arrays())
    theirs = safetensors.numpy.load_file(path)
    assert all(np.array_equal(theirs[name], array) for name, array in arrays().items())
    assert (record.file, record.bytes) == (path.name, path.stat().st_size)
    assert record.xxh3_128 == xxhash.xxh3_128_hexdigest(path.read_bytes())
    assert store.file_xxh3_128(path) == record.xxh3_128
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_others_of_the_group_may_read_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    store.write_arrays(tmp_path / "a.safetensors", arrays())
    expected = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "a.safetensors").stat().st_mode == expected


@pytest.mark.parametrize("keep", [0, 4, 30, 200, -1])
def test_a_safetensors_file_cut_short_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    store.write_arrays(path, arrays())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.safetensors is damaged"):
        store.read_arrays(path)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    store.write_json(path, {"old": 1})

    def fail(descriptor: int) -> None:
        raise OSError(28, f"No space left on device ({descriptor})")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        store.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}


def test_a_folder_that_is_no_corpus_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json.*corpus build"):
        store.Corpus.open(tmp_path)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        store.Corpus.open(tmp_path / "absent")
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        store.Corpus.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format_version": 2}')
    with pytest.raises(UserError, match="format version 2"):
        store.Corpus.open(tmp_path)
