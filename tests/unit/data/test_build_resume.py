"""A build that was broken off goes on, and ends as if nothing had happened."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from electra_dist.data import build as building
from electra_dist.data import merge, parts, records, sources
from electra_dist.data.build import build_corpus
from electra_dist.data.build_options import BuildOptions, SourceSpec
from electra_dist.data.parts import Encoder, PartTask, SourceInput, part_tasks
from electra_dist.data.plan import BuildFolder
from electra_dist.data.records import SourceOptions
from electra_dist.errors import UserError
from tests.made_up import SYLLABLES, text

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
INSIDE = tuple(f"##{syllable}" for syllable in SYLLABLES)


class Killed(BaseException):
    """Stands for the end of the process: no `except Exception` sees it."""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four files, each a part."""
    monkeypatch.setattr(parts, "_FIRST_PART_BYTES", 1)
    folder = tmp_path / "input"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(text(6, seed=number % 3))  # the last is the first
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *SYLLABLES, *INSIDE]))
    return folder


@pytest.fixture
def calm(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """What an undisturbed build gives."""
    build(source, tmp_path / "calm")
    return files_of(tmp_path / "calm")


def build(source: Path, out: Path, **options: Any) -> None:
    vocab = str(out.parent / "vocab.txt")
    defaults: dict[str, Any] = {"tokenizer": vocab, "held_out_share": 0.3}
    spec = SourceSpec(inputs=(str(source),), options=options.pop("how", SourceOptions()))
    build_corpus(BuildOptions(sources=(spec,), out=out, **(defaults | options)))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the parts that are written, in order."""
    numbers: list[int] = []
    write = Encoder.write

    def noting(encoder: Encoder, task: PartTask) -> tuple[int, int]:
        numbers.append(task.number)
        return write(encoder, task)

    monkeypatch.setattr(Encoder, "write", noting)
    return numbers


def broken(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, after: int = 0) -> None:
    """The function dies at its call number `after`, once."""
    function: Callable[..., Any] = getattr(module, name)
    calls = iter(range(10**6))

    def dying(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == after:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, dying)


def test_only_the_missing_parts_are_written(
    source: Path,
    tmp_path: Path,
    calm: dict[str, bytes],
    written: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "corpus"
    broken(monkeypatch, Encoder, "write", after=2)
    with pytest.raises(Killed):
        build(source, out)
    assert written == [0, 1]
    assert not out.exists()
    build(source, out)
    assert written == [0, 1, 2, 3]
    assert "going on with 2 parts" in caplog.text
    assert files_of(out) == calm
    assert not out.with_name("corpus.building").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [(merge, "is_held_out"), (building, "survey"), (building, "write_shards"), (Path, "rename")],
)
def test_a_merge_that_was_broken_off_is_made_again_without_reading_the_input(
    module: Any,
    name: str,
    source: Path,
    tmp_path: Path,
    calm: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "corpus"
    with monkeypatch.context() as patch:
        broken(patch, module, name, after=1 if name == "is_held_out" else 0)
        with pytest.raises(Killed):
            build(source, out)
    assert not out.exists()

    def unread(*_: Any) -> Iterator[sources.Piece]:
        raise AssertionError("the input was read again")

    monkeypatch.setattr(sources, "pieces", unread)
    build(source, out)
    assert files_of(out) == calm


def test_a_kill_after_the_corpus_appeared_leaves_nothing_to_do(
    source: Path, tmp_path: Path, calm: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "corpus"
    with monkeypatch.context() as patch:
        broken(patch, shutil, "rmtree", after=1)  # the first call empties the corpus's place
        with pytest.raises(Killed):
            build(source, out)
    assert out.with_name("corpus.building").exists()
    build(source, out)
    assert files_of(out) == calm
    assert not out.with_name("corpus.building").exists()
    with pytest.raises(UserError, match="exists already"):
        build(source, out)


def test_two_builds_at_once_are_refused(source: Path, tmp_path: Path) -> None:
    with BuildFolder(tmp_path / "corpus"), pytest.raises(UserError, match="another build"):
        build(source, tmp_path / "corpus")
    build(source, tmp_path / "corpus")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lowercase": False}, "the tokenizer changed"),
        ({"how": SourceOptions(splitter="lines")}, "the input changed"),
        ("a file", "the input changed"),
        ("a longer file", "the input changed"),
    ],
)
def test_a_build_of_something_else_starts_anew_and_says_so(
    change: str | dict[str, Any],
    named: str,
    source: Path,
    tmp_path: Path,
    written: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        broken(patch, Encoder, "write", after=2)
        with pytest.raises(Killed):
            build(source, tmp_path / "corpus")
    written.clear()
    if change == "a file":
        (source / "7.txt").write_text("One more.")
    elif change == "a longer file":
        with (source / "3.txt").open("a") as file:
            file.write("\nmore\n")
    options = change if isinstance(change, dict) else {}
    build(source, tmp_path / "corpus", **options)
    assert f"{named} since the build that was broken off; starting anew" in caplog.text
    assert written == list(range(5 if change == "a file" else 4))
    build(source, tmp_path / "calm", **options)
    assert files_of(tmp_path / "corpus") == files_of(tmp_path / "calm")


def test_what_only_the_merge_looks_at_may_change(
    source: Path, tmp_path: Path, written: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        broken(patch, building, "write_shards")
        with pytest.raises(Killed):
            build(source, tmp_path / "corpus")
    written.clear()
    options = {"held_out_share": 0.4, "dedup": "none", "shard_tokens": 500}
    build(source, tmp_path / "corpus", **options)
    assert written == []
    build(source, tmp_path / "calm", **options)
    assert files_of(tmp_path / "corpus") == files_of(tmp_path / "calm")


def test_a_full_disk_loses_nothing_that_was_done(
    source: Path, tmp_path: Path, calm: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.fsync
    calls = iter(range(1000))

    def full(descriptor: int) -> None:
        if next(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            build(source, tmp_path / "corpus")
    assert list((tmp_path / "corpus.building" / "parts").glob("part_*"))
    build(source, tmp_path / "corpus")
    assert files_of(tmp_path / "corpus") == calm


def test_parts_are_the_same_however_the_files_are_many_or_large(tmp_path: Path) -> None:
    """Pieces are gathered over small files, and parts grow with what came before."""
    folder = tmp_path / "many"
    folder.mkdir()
    content = "a few words.\n" * 700
    for number in range(100):
        (folder / f"{number:03d}.txt").write_text(content)
    files = sources.find_files([str(folder)])
    size = sum(file.num_bytes or 0 for file in files)
    source = SourceInput(kind="text", options=SourceOptions(), files=files)
    tasks = list(part_tasks([source]))
    assert size / (256 << 10) <= len(tasks) < size / (256 << 10) + 1.5
    assert [task.number for task in tasks] == list(range(len(tasks)))
    order = [piece.file_index for task in tasks for piece in task.pieces]
    assert order == list(range(100))
    both = list(part_tasks([source, source]))
    assert [task.source for task in both] == [0] * len(tasks) + [1] * len(tasks)


def test_parts_grow_and_shrink_again_where_sizes_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PIECE_BYTES", 100)
    monkeypatch.setattr(parts, "_FIRST_PART_BYTES", 200)
    monkeypatch.setattr(parts, "PART_BYTES", 1000)
    (tmp_path / "a.txt").write_text("a few words.\n\n" * 10_000)
    files = sources.find_files([str(tmp_path / "a.txt")])

    def sizes() -> list[int]:
        source = SourceInput(kind="text", options=SourceOptions(), files=files)
        return [sum(len(p.payload) for p in task.pieces) for task in part_tasks([source])]

    grown = sizes()
    assert sum(grown) == 140_000
    assert max(grown[:10] + grown[-10:]) < 350
    assert 900 < max(grown) < 1200
    files = [replace(files[0], num_bytes=None)]
    assert sizes()[:10] == grown[:10]
    assert min(sizes()[-10:-1]) > 900
