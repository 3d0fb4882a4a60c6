"""A competitor of reading.py, in its own process and environment: `python reading.py NAME FOLDER`.

FOLDER/rows.npy holds the rows, uint16 [R, 128]. They are written into the library's own format
once, then requests come as lines on stdin: a number of batches to read, answered by the seconds and
the CPU seconds that it took; `check` is answered by what is wrong with the next batches, if any.
Each library is read in the fastest shuffled way that we found, and every batch is int64 [256, 128].
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

BATCH, SEED, SHARD_ROWS = 256, 1, 32_768
BUFFER_ROWS = 10_000
"""Of a shuffle buffer, where a library shuffles with one: what their documents use."""

Rows = np.ndarray
Batches = Iterator[np.ndarray]


def stacked(samples: Iterator[np.ndarray]) -> Batches:
    """Single rows, collated as a torch DataLoader would, but without its overhead."""
    batch = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == BATCH:
            yield np.stack(batch).astype(np.int64)
            batch = []


def write_mosaicml(rows: Rows, folder: Path) -> None:
    """MDS shards of fixed-size arrays."""
    streaming = import_streaming()
    columns = {"ids": f"ndarray:uint16:{rows.shape[1]}"}
    with streaming.MDSWriter(out=str(folder), columns=columns) as writer:
        for row in rows:
            writer.write({"ids": row})


def read_mosaicml(folder: Path) -> Batches:
    """Its default shuffle, py1e; each pass over the dataset is an epoch."""
    dataset = import_streaming().StreamingDataset(
        local=str(folder), shuffle=True, shuffle_seed=SEED, batch_size=BATCH
    )
    while True:
        yield from stacked(sample["ids"] for sample in dataset)


def import_streaming() -> Any:
    """mosaicml-streaming; its classes for pictures import torchvision, which is not installed."""
    import transformers.feature_extraction_utils
    import transformers.tokenization_utils_base  # noqa: F401 (both look for torchvision themselves)

    if "torchvision" not in sys.modules:
        names = ("torchvision", "torchvision.datasets", "torchvision.transforms")
        modules = {name: types.ModuleType(name) for name in names}
        functional = types.ModuleType("torchvision.transforms.functional")
        modules["torchvision.datasets"].VisionDataset = object
        functional.to_tensor = None
        sys.modules |= {**modules, functional.__name__: functional}
    import streaming

    return streaming


def write_litdata(rows: Rows, folder: Path) -> None:
    """Chunks of tokens without headers, for its TokensLoader; a row is a block."""
    from litdata import TokensLoader
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes=SHARD_ROWS * rows[0].nbytes, item_loader=TokensLoader())
    for index, row in enumerate(rows):
        cache._add_item(index, row)
    cache.done()
    cache.merge()


def read_litdata(folder: Path) -> Batches:
    """Its full shuffle: chunks, and the rows of a chunk."""
    from litdata import StreamingDataset, TokensLoader

    length = int(np.load(folder.parent / "rows.npy", mmap_mode="r").shape[1])
    dataset = StreamingDataset(
        str(folder), item_loader=TokensLoader(block_size=length), shuffle=True, seed=SEED
    )
    while True:
        yield from stacked(iter(dataset))


def write_webdataset(rows: Rows, folder: Path) -> None:
    """Tar shards, a file of raw bytes a row."""
    import webdataset

    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=SHARD_ROWS, verbose=0) as sink:
        for index, row in enumerate(rows):
            sink.write({"__key__": f"{index:09d}", "ids": row.tobytes()})


def read_webdataset(folder: Path) -> Batches:
    """Shards in random order, rows through a shuffle buffer."""
    import webdataset

    shards = sorted(map(str, folder.glob("*.tar")))
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=SEED, empty_check=False)
    dataset = dataset.shuffle(BUFFER_ROWS)
    while True:
        yield from stacked(np.frombuffer(sample["ids"], np.uint16) for sample in dataset)


def write_datasets(rows: Rows, folder: Path) -> None:
    """An Arrow dataset with one column of lists of fixed length."""
    import datasets
    import pyarrow

    lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])
    features = datasets.Features(
        {"ids": datasets.List(datasets.Value("uint16"), length=rows.shape[1])}
    )
    datasets.disable_progress_bars()
    datasets.Dataset(pyarrow.table({"ids": lists})).cast(features).save_to_disk(str(folder))


def read_datasets_random(folder: Path, form: str) -> Batches:
    """Rows at permuted indices, a batch at once, in one of its formats."""
    import datasets

    dataset = datasets.load_from_disk(str(folder)).with_format(form)
    generator = np.random.default_rng(SEED)
    while True:
        order = generator.permutation(len(dataset))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield from_format(dataset[order[start : start + BATCH]], form)


def read_datasets_buffer(folder: Path, form: str) -> Batches:
    """As a stream: shards in random order, rows through a shuffle buffer."""
    import datasets

    dataset = datasets.load_from_disk(str(folder))
    shards = -(-len(dataset) // SHARD_ROWS)
    stream = dataset.to_iterable_dataset(num_shards=shards).shuffle(
        seed=SEED, buffer_size=BUFFER_ROWS
    )
    for epoch in range(sys.maxsize):
        stream.set_epoch(epoch)
        for batch in stream.with_format(form).iter(BATCH, drop_last_batch=True):
            yield from_format(batch, form)


def from_format(batch: Any, form: str) -> np.ndarray:
    """The ids of a batch as int64 [B, L]; an Arrow buffer is not copied before it is widened."""
    if form == "arrow":
        column = batch.column("ids").combine_chunks()
        return column.flatten().to_numpy().reshape(len(column), -1).astype(np.int64)
    ids = batch["ids"]
    return ids.numpy() if form == "torch" else np.asarray(ids).astype(np.int64)


PEERS: dict[str, tuple[Callable[[Rows, Path], None], Callable[[Path], Batches]]] = {
    "mosaicml-streaming": (write_mosaicml, read_mosaicml),
    "litdata": (write_litdata, read_litdata),
    "webdataset": (write_webdataset, read_webdataset),
    **{
        f"datasets, {way}, {form}": (write_datasets, partial(read, form=form.lower()))
        for way, read in (
            ("random access", read_datasets_random),
            ("shuffle buffer", read_datasets_buffer),
        )
        for form in ("torch", "numpy", "Arrow")
    },
}


def problem(batches: Batches, rows: Rows, num_batches: int = 20) -> str | None:
    """What is wrong with the next batches: another shape or type, unknown rows, no shuffling."""
    places = {row.tobytes(): place for place, row in enumerate(rows)}
    found = []
    for _ in range(num_batches):
        batch = next(batches)
        if batch.dtype != np.int64 or batch.shape != (BATCH, rows.shape[1]):
            return f"{batch.dtype} {batch.shape}"
        found += [places.get(row.tobytes(), -1) for row in batch.astype(np.uint16)]
    if -1 in found:
        return f"{found.count(-1)} of {len(found)} rows are not ours"
    if np.mean(np.diff(found) == 1) > 0.01:
        return "neighbouring rows follow each other: not shuffled"
    return None


def main() -> None:
    """Write the dataset if it is not there, then answer requests until stdin ends."""
    name, work = sys.argv[1], Path(sys.argv[2])
    write, read = PEERS[name]
    rows = np.load(work / "rows.npy")
    folder = work / write.__name__
    if not folder.is_dir():
        unfinished = work / f"{write.__name__}.building"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        write(rows, unfinished)
        unfinished.rename(folder)
    answers, sys.stdout = sys.stdout, sys.stderr  # some of them print
    batches = read(folder)
    for line in sys.stdin:
        request = json.loads(line)
        if request == "check":
            answer: object = problem(batches, rows)
        else:
            started = time.perf_counter(), time.process_time()
            for _ in range(request):
                next(batches)
            answer = [time.perf_counter() - started[0], time.process_time() - started[1]]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
