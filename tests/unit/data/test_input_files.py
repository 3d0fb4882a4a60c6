import gzip
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from electra_dist.data import records
from electra_dist.data.sources import find_files
from electra_dist.errors import UserError
from tests.unit.data.reading import named, read


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """The files of memory://, a store that is no local folder."""
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def test_folders_are_read_sorted_and_deep_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/c/d.txt", ".hidden", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for given in (str(tmp_path), f"file://{tmp_path}"):
        files = find_files([given])
        assert [f.name for f in files] == ["a/c/d.txt", "a/z.txt", "b.txt"]
        assert {f.given for f in files} == {given}
        assert {f.num_bytes for f in files} == {1}


def test_globs_and_names_with_brackets(tmp_path: Path) -> None:
    for name in ("b1.txt", "b2.txt", "c.txt", "[x].txt"):
        (tmp_path / name).write_text("x")
    for scheme in ("", "file://"):
        found = find_files([f"{scheme}{tmp_path}/b*.txt"])
        assert [Path(f.address).name for f in found] == ["b1.txt", "b2.txt"]
        assert [f.name for f in find_files([f"{scheme}{tmp_path}/[x].txt"])] == ["[x].txt"]


def test_a_file_that_changes_has_another_version(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    [before] = find_files([str(path)])
    path.write_text("y")
    [after] = find_files([str(path)])
    assert before.version != after.version


def test_a_remote_store_is_read_like_a_folder(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/c/b.txt", b"One.\n\nTwo.\n")
    memory.pipe("/c/d/a.txt.gz", gzip.compress(b"Three.\n"))
    memory.pipe("/c/d/cut.txt.gz", gzip.compress(b"Four.\n" * 1000)[:-20])
    memory.pipe("/c/.hidden/x.txt", b"no")
    files = find_files(["memory://c"])
    assert [f.name for f in files] == ["b.txt", "d/a.txt.gz", "d/cut.txt.gz"]
    assert files[0].num_bytes == 11
    assert files[0].version
    found = read("text", "memory://c")
    assert found.documents[:3] == [("One.",), ("Two.",), ("Three.",)]
    assert [record.reason for record in found.bad] == [records.DAMAGED_ARCHIVE]

    assert [f.name for f in find_files(["memory://c/*.txt"])] == ["c/b.txt"]
    assert [f.name for f in find_files(["memory://c/**/*.gz"])] == [
        "c/d/a.txt.gz",
        "c/d/cut.txt.gz",
    ]
    assert [f.name for f in find_files(["memory://c/b.txt"])] == ["b.txt"]
    assert read("text", "memory://c/b.txt").num_bytes == 11


def test_remote_json_lines(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/c/a.jsonl", b'{"text": "One."}\nno\n')
    found = read("jsonl", "memory://c/a.jsonl")
    assert found.documents == [("One.",)]
    assert named(found.bad) == [(17, records.NOT_JSON)]


@pytest.mark.parametrize(
    ("given", "package"),
    [("s3://bucket/key", "s3fs"), ("gs://bucket/key", "gcsfs"), ("https://host/x", "aiohttp")],
)
def test_a_missing_package_is_named(
    given: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def url_to_fs(address: str) -> None:
        raise ImportError(f"Install something for {address}")

    monkeypatch.setattr("fsspec.core.url_to_fs", url_to_fs)
    with pytest.raises(UserError, match=rf"{given}.*pip install {package}"):
        find_files([given])


@pytest.mark.parametrize(
    "given", ["missing.txt", "none*.txt", "empty", "a.zip", "memory://nothing", "what://x"]
)
def test_inputs_that_lead_nowhere_are_the_users_mistake(tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_bytes(b"x")
    full = given if "://" in given else str(tmp_path / given)
    with pytest.raises(UserError, match=given.replace("*", r"\*")):
        find_files([full])


def test_an_archive_in_a_folder_is_one_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04\x00\x00")
    (tmp_path / "b.txt").write_text("Good.")
    found = read("text", tmp_path)
    assert found.documents == [("Good.",)]
    assert named(found.bad) == [(0, records.BINARY)]
