"""Shuffled rows of 128 tokens a second, from one process, in batches of 256, beside other loaders.

    python benchmarks/reading.py [--corpus CORPUS] [--cache build/reading] [--json]

The competitors read the same rows, each in its own format and process (peers/reading.py), from an
environment that this script makes in the cache folder; their batches are token ids only, int64
[256, 128], and no masks are applied. What no loader can beat stands beside them: 256 rows that are
widened to int64 into memory that is used again, neighbours or at random, with no order to compute.
`datasets` hands out torch tensors, numpy arrays or Arrow tables as its format says; what is no
int64 array is made one. Ours are read by the compiled kernels and by numpy, which give the same
bits. All take turns in every round. Ratios are of the medians of rows a second, then of rows a CPU
second, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from electra_dist.config.recipes import RECIPES  # noqa: E402 (the tests' corpus maker is beside us)
from electra_dist.config.schema import BatchConfig  # noqa: E402
from electra_dist.data.fast_path import fast_path  # noqa: E402
from electra_dist.data.rows import RowReader  # noqa: E402
from electra_dist.data.store import Corpus, Packing  # noqa: E402
from electra_dist.data.stream import CorpusStream  # noqa: E402
from tests import made_up  # noqa: E402

BATCH, LENGTH, ROUNDS, ROUND_SECONDS = 256, 128, 9, 0.7
NUM_DOCUMENTS = 140_000
"""Of the made-up text: a little over 200,000 rows."""

PEERS = (
    "mosaicml-streaming",
    "litdata",
    "webdataset",
    # As its documents say for training: torch or numpy. Arrow leaves that work to the user.
    *(
        f"datasets, {way}, {form}"
        for way in ("random access", "shuffle buffer")
        for form in ("torch", "numpy", "Arrow")
    ),
)
INSTALLS = (
    ("torch==2.13.0",),
    # By themselves: streaming's limits on transformers and numpy clash with what datasets needs,
    # both want torchvision for pictures, and the clients of five clouds are not used here.
    ("--no-deps", "mosaicml-streaming==0.13.0", "litdata==0.2.76"),
    (
        *("datasets==5.2.0", "webdataset==1.0.2", "transformers==5.17.0", "numpy==2.1.3"),
        *("xxhash==3.8.2", "brotli==1.2.1", "python-snappy==0.7.3", "zstd==1.5.7.2"),
        *("boto3==1.44.8", "catalogue==2.0.10", "lightning-utilities==0.15.3", "obstore==0.12.1"),
        *("tifffile==2026.3.3", "pillow==13.0.0", "requests==2.34.2", "torch==2.13.0"),
    ),
)

Runner = Callable[[int], list[float]]
"""Reads that many batches and says how many seconds went by, and how many a CPU worked for it."""


def environment(cache: Path) -> Path:
    """The python of an environment with the competitors; it is made if its pins have changed."""
    folder = cache / "venv"
    python, stamp = folder / "bin" / "python", folder / "installed.json"
    if not stamp.is_file() or stamp.read_text() != json.dumps(INSTALLS):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for packages in INSTALLS:
            # pip reports the clashes on stderr, which are known: shown if it fails only.
            command = [python, "-m", "pip", "install", "-qq", *packages]
            done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
        stamp.write_text(json.dumps(INSTALLS))
    return python


class Peer:
    """A competitor in a process of its own."""

    def __init__(self, python: Path, name: str, work: Path) -> None:
        script = Path(__file__).parent / "peers" / "reading.py"
        self._process = subprocess.Popen(
            [python, script, name, work],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        )
        self._name = name
        if problem := self.ask("check"):
            raise SystemExit(f"{name} does not read what it should: {problem}")

    def ask(self, request: str | int) -> Any:
        """The answer to one request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._name} ended; what it said stands above")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def ours(corpus: Corpus) -> dict[str, Runner]:
    """Our variants; each goes on through the epochs from call to call."""
    config = RECIPES["small"]()
    batch = BatchConfig(global_batch_size=BATCH, micro_batch_size=BATCH)
    stream = CorpusStream(replace(config, batch=batch), corpus)
    packing = Packing.open(corpus, LENGTH)
    reader = RowReader(corpus, packing, "train")
    tokens = corpus.token_shards("train")[0]
    last = len(tokens) - LENGTH
    starts = np.minimum(packing.examples("train")[0].start, last)
    starts = np.random.default_rng(1).permutation(starts)

    def without_masks(i: int) -> object:
        rows = reader.read(stream.sample_ids(np.arange(BATCH) + i * BATCH))
        return rows.input_ids_BL.astype(np.int64)

    def with_masks(i: int) -> object:
        return stream.micro_batch(i, 0, i * BATCH)

    def as_the_engine_gets_it(i: int) -> object:
        micro_batch = stream.micro_batch(i, 0, i * BATCH)
        arrays = (micro_batch.input_ids_BL, micro_batch.masked_ids_BL)
        return micro_batch.checksum, *(array.astype(np.int64) for array in arrays)

    def bare_gather(i: int) -> object:
        place = i * BATCH % (len(starts) - BATCH)
        return tokens[starts[place : place + BATCH, None] + np.arange(LENGTH)].astype(np.int64)

    rows = tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)
    shuffled = np.random.default_rng(2).permutation(len(rows))
    out = np.empty((64, BATCH, LENGTH), np.int64)

    def widen(i: int, chosen: NDArray[np.int64] | slice) -> None:
        np.copyto(out[i % len(out)], rows[chosen])

    def neighbours(i: int) -> None:
        place = i * BATCH % (len(rows) - BATCH)
        widen(i, slice(place, place + BATCH))

    def at_random(i: int) -> None:
        place = i * BATCH % (len(rows) - BATCH)
        widen(i, shuffled[place : place + BATCH])

    def runner(function: Callable[[int], object], compiled: bool = False) -> Runner:
        read = 0

        def run(num_batches: int) -> list[float]:
            nonlocal read
            if not compiled:
                fast_path.off()
            elif not fast_path.load():
                raise SystemExit("numba is not installed: pip install 'electra_dist[fast]'")
            started = time.perf_counter(), time.process_time()
            for i in range(read, read + num_batches):
                function(i)
            read += num_batches
            return [time.perf_counter() - started[0], time.process_time() - started[1]]

        return run

    functions = {
        "ours without masks": without_masks,
        "ours with masks": with_masks,
        "ours with masks, int64, checksum": as_the_engine_gets_it,
    }
    return {
        **{name: runner(function, compiled=True) for name, function in functions.items()},
        **{f"{name}, numpy": runner(function) for name, function in functions.items()},
        "bare gather": runner(bare_gather),
        "limit, at random": runner(at_random),
        "limit, neighbours": runner(neighbours),
    }


def measure(runners: dict[str, Runner], num_rounds: int) -> dict[str, list[list[float]]]:
    """[rows a second, rows a CPU second] of every variant in every round; they take turns."""
    num_batches = {}
    for name, run in runners.items():  # warm up, and see how many batches fill a round
        seconds = max(run(n)[0] / n for n in (20, 40))
        num_batches[name] = max(20, int(ROUND_SECONDS / seconds))
    rates: dict[str, list[list[float]]] = {name: [] for name in runners}
    names = list(runners)
    for round_number in range(num_rounds):
        start = round_number % len(names)
        for name in names[start:] + names[:start]:
            seconds_each = runners[name](num_batches[name])
            rates[name].append([BATCH * num_batches[name] / seconds for seconds in seconds_each])
    return rates


def write_rows(corpus: Corpus, path: Path) -> None:
    """The rows of our packing, as they are read, for the competitors: uint16 [R, 128]."""
    reader = RowReader(corpus, Packing.open(corpus, LENGTH), "train")
    rows = np.empty((reader.num_rows, LENGTH), np.uint16)
    for start in range(0, len(rows), 4096):
        ids = np.arange(start, min(start + 4096, len(rows)))
        rows[ids] = reader.read(ids).input_ids_BL
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, rows)


def table(rates: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """Median and spread of each variant, and how many times it ours are."""
    medians = {
        name: [statistics.median(column) for column in zip(*rounds, strict=True)]
        for name, rounds in rates.items()
    }
    rows = []
    for name, rounds in rates.items():
        rate, cpu_rate = medians[name]
        row: dict[str, Any] = {"variant": name, "median": rate, "cpu_median": cpu_rate}
        row |= {"low": min(one[0] for one in rounds), "high": max(one[0] for one in rounds)}
        for which in ("without_masks", "with_masks"):
            mine, my_cpu = medians[f"ours {which.replace('_', ' ')}"]
            row |= {f"{which}_times": mine / rate, f"{which}_cpu_times": my_cpu / cpu_rate}
        rows.append(row)
    return rows


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="packed at 128; default: made-up text")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "reading")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.corpus is None and not (args.cache / "corpus").is_dir():
        made_up.corpus(args.cache, length=LENGTH, num_documents=NUM_DOCUMENTS)
    corpus = Corpus.open(args.corpus or args.cache / "corpus")
    runners = ours(corpus)
    peers = {}
    if args.peers:
        python = environment(args.cache)
        work = args.cache / Packing.open(corpus, LENGTH).fingerprint
        if not (work / "rows.npy").is_file():
            write_rows(corpus, work / "rows.npy")
        peers = {name: Peer(python, name, work) for name in args.peers}
        runners |= {name: peer.ask for name, peer in peers.items()}
    rows = table(measure(runners, args.rounds))
    for peer in peers.values():
        peer.close()
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'':<73}{'ours / this (by CPU time)':>36}")
    print(
        f"{'rows of 128 a second':<40}{'median':>11}{'low':>11}{'high':>11}"
        f"{'without masks':>18}{'with masks':>18}"
    )
    for row in rows:
        numbers = "".join(f"{row[key]:>11,.0f}" for key in ("median", "low", "high"))
        ratios = "".join(
            f"{row[f'{which}_times']:>10.2f} ({row[f'{which}_cpu_times']:.2f})"
            for which in ("without_masks", "with_masks")
        )
        print(f"{row['variant']:<40}{numbers}{ratios}")


if __name__ == "__main__":
    main()
