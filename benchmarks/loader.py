"""Packed samples of 128 tokens a second, from one process, shuffled, with masks applied.

    python benchmarks/loader.py [--corpus CORPUS] [--json]

Beside it, interleaved in the same run: the same rows without masks, and the bare gather
`tokens[starts[:, None] + arange(L)].astype(int64)` that no loader can be faster than. Reported are
the median and the spread of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from electra_dist.config.recipes import RECIPES  # noqa: E402 (the tests' corpus maker is beside us)
from electra_dist.config.schema import BatchConfig  # noqa: E402
from electra_dist.data.rows import RowReader  # noqa: E402
from electra_dist.data.store import Corpus, Packing  # noqa: E402
from electra_dist.data.stream import CorpusStream  # noqa: E402
from tests import made_up  # noqa: E402

BATCH, LENGTH, BATCHES, ROUNDS = 256, 128, 200, 7


def variants(corpus: Corpus) -> dict[str, Callable[[int], object]]:
    """Name -> a function that gives batch number i."""
    config = RECIPES["small"]()
    batch = BatchConfig(global_batch_size=BATCH, micro_batch_size=BATCH)
    stream = CorpusStream(replace(config, batch=batch), corpus)
    packing = Packing.open(corpus, LENGTH)
    reader = RowReader(corpus, packing, "train")
    tokens = corpus.token_shards("train")[0]
    starts = packing.examples("train")[0].start
    last = len(tokens) - LENGTH

    def with_masks(i: int) -> object:
        return stream.micro_batch(i, 0, i * BATCH)

    def without_masks(i: int) -> object:
        return reader.read(stream.order.sample_ids(np.arange(BATCH) + i * BATCH))

    def bare_gather(i: int) -> object:
        rows = np.minimum(starts[(np.arange(BATCH) + i * BATCH) % len(starts)], last)
        return tokens[rows[:, None] + np.arange(LENGTH)].astype(np.int64)

    return {
        "rows and masks": with_masks,
        "rows without masks": without_masks,
        "bare gather": bare_gather,
    }


def measure(functions: dict[str, Callable[[int], object]]) -> dict[str, list[float]]:
    """Samples a second of every variant in every round; the variants take turns."""
    rates: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(ROUNDS + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            for i in range(BATCHES):
                function(i)
            if round_number:  # the first round only warms up
                rates[name].append(BATCH * BATCHES / (time.perf_counter() - started))
    return rates


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="packed at 128; default: made-up text")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.corpus or made_up.corpus(Path(folder), length=LENGTH, num_documents=20_000)
        rates = measure(variants(Corpus.open(path)))
    rows = [
        {"variant": n, "median": statistics.median(r), "low": min(r), "high": max(r)}
        for n, r in rates.items()
    ]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'samples a second':<24}{'median':>12}{'low':>12}{'high':>12}")
    for row in rows:
        numbers = (f"{row[key]:>12,.0f}" for key in ("median", "low", "high"))
        print(f"{row['variant']:<24}{''.join(numbers)}")


if __name__ == "__main__":
    main()
