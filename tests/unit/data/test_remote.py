"""Corpora at addresses. The file system `flaky://` is an fsspec one like any other, in memory."""

import io
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.spec import AbstractFileSystem

from electra_dist.config.schema import BatchConfig, DataConfig, RunConfig
from electra_dist.data import remote as remote_module
from electra_dist.data.corpora import Corpora
from electra_dist.data.frozen import read_frozen
from electra_dist.data.remote import Cache, RemoteFolder
from electra_dist.data.rows import RowReader
from electra_dist.data.store import Corpus, Packing
from electra_dist.data.stream import CorpusStream
from electra_dist.errors import UserError
from electra_dist.runtime.retry import Retry
from tests.unit.data.conftest import LENGTH

ADDRESS = "flaky://bucket/corpus"


class Flaky(AbstractFileSystem):
    """Files in memory that count their reads, and whose next reads fail or are damaged on order."""

    protocol = "flaky"
    files: ClassVar[dict[str, bytes]]
    reads: ClassVar[list[str]]
    failures: ClassVar[list[Exception]]
    damaged_reads: ClassVar[int]

    def _open(self, path: str, *_: Any, **__: Any) -> io.BytesIO:
        path = self._strip_protocol(path)
        if path not in self.files:
            raise FileNotFoundError(path)
        Flaky.reads.append(path.rsplit("/", 1)[-1])
        if self.failures:
            raise self.failures.pop(0)
        content = self.files[path]
        if self.damaged_reads and path.endswith(".safetensors"):
            Flaky.damaged_reads -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        return io.BytesIO(content)


@pytest.fixture
def flaky(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> type[Flaky]:
    """The corpus of the other tests, at `flaky://bucket/corpus`."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    files = {
        f"bucket/corpus/{path.relative_to(corpus.folder)}": path.read_bytes()
        for path in corpus.folder.rglob("*")
        if path.is_file()
    }
    for name, value in {"files": files, "reads": [], "failures": [], "damaged_reads": 0}.items():
        monkeypatch.setattr(Flaky, name, value, raising=False)
    monkeypatch.setattr("electra_dist.runtime.retry.time.sleep", lambda _: None)
    return Flaky


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(folder=tmp_path / "cache", retry=Retry(num_attempts=4, first_delay_seconds=0.0))


def shard_files(corpus: Corpus) -> list[str]:
    return [record["file"] for record in corpus.records("train")]


def cached(cache: Cache) -> list[Path]:
    return sorted(path for path in cache.folder.rglob("*") if path.is_file())


def open_remote(cache: Cache) -> tuple[Corpus, RowReader]:
    opened = Corpus.open(ADDRESS, cache)
    return opened, RowReader(opened, Packing.open(opened, LENGTH), "train")


def config(cache: Cache, address: str) -> RunConfig:
    data = DataConfig(corpus=address, sequence_length=LENGTH, cache_dir=str(cache.folder))
    batch = BatchConfig(global_batch_size=24, micro_batch_size=8)
    return RunConfig(seed=5, data=data, batch=batch)


def test_a_stream_of_a_remote_corpus_is_that_of_the_local_one(
    corpus: Corpus, flaky: type[Flaky], cache: Cache
) -> None:
    remote, local = config(cache, ADDRESS), config(cache, str(corpus.folder))
    assert replace(remote.data, corpus=None) == replace(local.data, corpus=None)
    steps = []
    for one in (remote, local):
        corpora = Corpora.open(one.data)
        stream = CorpusStream(one, corpora)
        found: list[Any] = []
        for step in range(20):
            found += [batch.checksum for batch in stream.micro_batches(step, 24 * step)]
        stream.close()
        frozen = read_frozen(corpora.packings[0], 0.15)
        assert frozen is not None
        found.append(int(frozen["input_ids"].sum()))
        found.append(int(corpora.unigram_counts().sum()))
        steps.append([*found, corpora.first.tokenizer_path.read_bytes()])
    assert steps[0] == steps[1]
    # Every file was read once, and nothing but whole files is left in the cache.
    assert len(flaky.reads) == len(set(flaky.reads)) + flaky.reads.count("manifest.json") - 1
    assert not [path for path in cached(cache) if path.name.endswith(".tmp")]


def test_a_shard_is_fetched_when_it_is_first_read(
    corpus: Corpus, flaky: type[Flaky], cache: Cache
) -> None:
    opened, reader = open_remote(cache)
    assert flaky.reads == ["manifest.json", "manifest.json"]
    reader.read(np.arange(3))
    reader.read(np.arange(5))
    first = shard_files(corpus)[0]
    assert flaky.reads[2:] == [first, first.replace("tokens", "examples")]
    # Another process on the node finds them in the cache.
    flaky.reads.clear()
    open_remote(cache)[1].read(np.arange(3))
    assert flaky.reads == ["manifest.json"] * 2
    assert opened.remote is not None
    assert str(opened.remote) == ADDRESS


def test_reads_that_fail_are_tried_again_and_logged(
    flaky: type[Flaky], cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    flaky.failures += [TimeoutError("slow"), OSError(5, "EIO"), RuntimeError("503 SlowDown")]
    with caplog.at_level(logging.WARNING):
        _, reader = open_remote(cache)
    assert sum("bucket/corpus/manifest.json failed" in r.getMessage() for r in caplog.records) == 3
    flaky.failures += [OSError(5, "EIO")] * 4
    with pytest.raises(UserError, match=r"tokens_00000.safetensors cannot be read after 4 attemp"):
        reader.read(np.arange(3))
    flaky.failures.clear()
    assert len(reader.read(np.arange(3)).num_tokens_B) == 3


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("Forbidden"), r"cannot be read \(PermissionError: Forbidden\): check"),
        (ImportError("Install s3fs to access S3"), "needs another package: Install s3fs"),
    ],
    ids=["forbidden", "no client"],
)
def test_what_is_not_mended_by_waiting_is_said_at_once(
    error: Exception, words: str, flaky: type[Flaky], cache: Cache
) -> None:
    flaky.failures.append(error)
    with pytest.raises(UserError, match=words):
        Corpus.open(ADDRESS, cache)
    assert len(flaky.reads) == 1


def test_a_missing_corpus_or_file_is_named(flaky: type[Flaky], cache: Cache) -> None:
    with pytest.raises(UserError, match="flaky://bucket/nothing is no corpus"):
        Corpus.open("flaky://bucket/nothing/", cache)
    opened, reader = open_remote(cache)
    with pytest.raises(UserError, match=f"{ADDRESS}/pack_64_full is no packing"):
        Packing.open(opened, 64)
    del flaky.files["bucket/corpus/tokens_00000.safetensors"]
    with pytest.raises(UserError, match=r"tokens_00000.safetensors does not exist, but the manif"):
        reader.read(np.arange(3))


def test_a_damaged_fetch_is_made_again_and_then_refused(
    corpus: Corpus, flaky: type[Flaky], cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    _, reader = open_remote(cache)
    flaky.damaged_reads = 2
    rows = reader.read(np.arange(3))
    local = RowReader(corpus, Packing.open(corpus, LENGTH), "train").read(np.arange(3))
    np.testing.assert_array_equal(rows.input_ids_BL, local.input_ids_BL)
    assert sum("came damaged" in record.getMessage() for record in caplog.records) == 2
    flaky.damaged_reads = 100
    with pytest.raises(UserError, match=r"is damaged: its content does not match.*3 times") as e:
        reader.read(np.array([reader.num_rows - 1]))
    assert "\n" not in str(e.value)
    assert shard_files(corpus)[-1].split(".")[0] not in " ".join(map(str, cached(cache)))


@pytest.mark.usefixtures("flaky")
def test_a_corpus_that_was_built_again_never_meets_the_old_files(cache: Cache) -> None:
    opened, reader = open_remote(cache)
    reader.read(np.arange(3))
    assert opened.remote is not None
    record = dict(opened.records("train")[0], xxh3_128="0" * 32)
    with pytest.raises(UserError, match="does not match the hash"):
        opened.remote.fetch(record)


@pytest.mark.usefixtures("flaky")
def test_the_cache_holds_what_was_used_last_and_what_is_mapped(
    corpus: Corpus, cache: Cache
) -> None:
    records = corpus.records("train")
    limit = sum(sorted(record["bytes"] for record in records[:4])[-2:])  # any two, no three
    assert limit < sum(sorted(record["bytes"] for record in records[:4])[:3])
    small = replace(cache, max_bytes=limit)
    folder = RemoteFolder.at(ADDRESS, small)
    first, second = folder.fetch(records[0]), folder.fetch(records[1])
    of_the_user = cache.folder / "thesis.safetensors"
    of_the_user.write_bytes(bytes(limit))
    os.utime(of_the_user, (0, 0))
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    folder.fetch(records[0])  # a hit makes it the one used last
    third = folder.fetch(records[2])
    assert first.exists()
    assert third.exists()
    assert not second.exists()
    mapped = folder.read(records[0], lambda path: np.memmap(path, np.uint8, mode="r"))
    os.utime(first, (1, 1))
    folder.fetch(records[3])
    assert first.exists()
    assert not third.exists()
    assert len(mapped) == records[0]["bytes"]
    del mapped
    folder.fetch(records[2])
    assert not first.exists()
    assert of_the_user.exists()


@pytest.mark.usefixtures("flaky")
def test_a_reader_keeps_a_small_cache_small(corpus: Corpus, cache: Cache) -> None:
    sizes = [record["bytes"] for record in corpus.records("train")]
    small = replace(cache, max_bytes=3 * max(sizes))
    opened, reader = open_remote(small)
    expected = RowReader(corpus, Packing.open(corpus, LENGTH), "train")
    rng = np.random.default_rng(0)
    for _ in range(20):
        ids = rng.integers(0, reader.num_rows, 4)
        np.testing.assert_array_equal(
            reader.read(ids).input_ids_BL, expected.read(ids).input_ids_BL
        )
        tokens = [path for path in cached(small) if path.suffix == ".safetensors"]
        assert sum(path.stat().st_size for path in tokens) <= small.max_bytes
    assert len(opened.records("train")) > 3


def test_a_file_that_another_process_evicts_is_fetched_again(
    corpus: Corpus, flaky: type[Flaky], cache: Cache
) -> None:
    folder, record = RemoteFolder.at(ADDRESS, cache), corpus.records("train")[0]
    gone = []

    def read(path: Path) -> int:
        if not gone:
            path.unlink()
            gone.append(path)
        return path.stat().st_size

    assert folder.read(record, read) == record["bytes"]
    assert flaky.reads == [record["file"]] * 2


@pytest.mark.usefixtures("flaky")
def test_leftovers_of_killed_processes_are_removed_after_a_day(
    corpus: Corpus, cache: Cache
) -> None:
    folder, records = RemoteFolder.at(ADDRESS, cache), corpus.records("train")
    path = folder.fetch(records[0])
    old, new = (path.with_name(f"{path.name}.{n:020}-0123abcd.tmp") for n in (0, 1))
    for leftover in (old, new):
        leftover.write_bytes(b"half")
    os.utime(old, (1, time.time() - 2 * 24 * 3600))
    folder.fetch(records[1])
    assert not old.exists()
    assert new.exists()


def test_one_process_fetches_and_the_others_wait_for_it(
    corpus: Corpus, flaky: type[Flaky], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record = RemoteFolder.at(ADDRESS, cache), corpus.records("train")[0]
    path = folder.fetch(record)
    content = path.read_bytes()
    path.unlink()
    flaky.reads.clear()
    growing = path.with_name(f"{path.name}.{0:020}-0123abcd.tmp")
    growing.write_bytes(content[:10])

    def meanwhile(_: float) -> None:
        growing.write_bytes(content)
        growing.rename(path)

    monkeypatch.setattr(remote_module.time, "sleep", meanwhile)
    assert folder.fetch(record).read_bytes() == content
    assert flaky.reads == []
    # One that was killed is not waited for.
    path.unlink()
    growing.write_bytes(content[:10])
    os.utime(growing, (1, time.time() - 60))
    assert folder.fetch(record).read_bytes() == content
    assert flaky.reads == [record["file"]]


RACE = """
import sys
from pathlib import Path
import numpy as np
from electra_dist.data.remote import Cache
from electra_dist.data.rows import RowReader
from electra_dist.data.store import Corpus, Packing
corpus = Corpus.open(sys.argv[1], Cache(folder=Path(sys.argv[2])))
reader = RowReader(corpus, Packing.open(corpus, int(sys.argv[3])), "train")
print("ready", flush=True)
sys.stdin.readline()
print(int(reader.read(np.arange(reader.num_rows)).input_ids_BL.astype(np.int64).sum()))
"""


def test_processes_that_fetch_the_same_files_at_once_all_read_them_whole(
    corpus: Corpus, tmp_path: Path
) -> None:
    shutil.copytree(corpus.folder, tmp_path / "bucket")
    cache = Cache(folder=tmp_path / "cache")
    command = [sys.executable, "-c", RACE, f"file://{tmp_path}/bucket", str(cache.folder)]
    racers = [
        subprocess.Popen(
            [*command, str(LENGTH)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    sums = [int(racer.communicate()[0]) for racer in racers]
    reader = RowReader(corpus, Packing.open(corpus, LENGTH), "train")
    expected = reader.read(np.arange(reader.num_rows)).input_ids_BL.astype(np.int64).sum()
    assert sums == [expected] * 3
    files = cached(cache)
    assert len(files) == 2 * len(corpus.records("train"))
    assert not [path for path in files if path.name.endswith(".tmp")]


@pytest.fixture
def no_cache_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in ("TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_cache_lies_on_the_nodes_disk_where_there_is_one(
    no_cache_settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_cache_settings.setenv("HOME", "/home/someone")
    assert Cache.at().folder == Path("/home/someone/.cache/electra_dist")
    no_cache_settings.setenv("XDG_CACHE_HOME", "/caches")
    assert Cache.at().folder == Path("/caches/electra_dist")
    no_cache_settings.setenv("TMPDIR", str(tmp_path))
    assert Cache.at().folder == tmp_path / f"electra_dist-{os.getuid()}"
    assert Cache.at("/scratch", 5) == Cache(folder=Path("/scratch"), max_bytes=5)
