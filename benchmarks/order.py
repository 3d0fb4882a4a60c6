"""The order of rows: what seeking costs, and how well it shuffles.

    python benchmarks/order.py [--cache build/order] [--no-peer] [--json]

Seeking: the first batch of 256 at positions up to 1e15 of 1e12 rows, each time by a new order with
a new seed, so that nothing is remembered; memory is tracemalloc's peak. Beside it, taking turns,
mosaicml-streaming's plan of an epoch (peers/plan.py) at 1e7 and 1e8 rows, from an environment that
this script makes in the cache folder.

Quality: one epoch of a million rows beside a uniform shuffle by numpy, and p-values of the keyed
permutation: below 0.001 they would speak against it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, norm, spearmanr

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from electra_dist.data.order import Order  # noqa: E402 (from a clone, without installing)
from electra_dist.data.permutation import permute  # noqa: E402

BATCH, CHUNK, ROUNDS = 256, 4096, 25
NUM_ROWS = 10**12
POSITIONS = (0, 6 * 10**11, 10**15)
PEER, PEER_ROWS, PEER_ROUNDS = "mosaicml-streaming==0.13.0", (10**7, 10**8), 3
QUALITY_ROWS, WINDOW = 2**20, 64 * 512


def orders(seed: int) -> dict[str, Order]:
    """What is measured: the plain order, and all four steps at once."""
    thirds = (NUM_ROWS // 3, NUM_ROWS // 2, NUM_ROWS // 6)
    return {
        "one corpus": Order(seed=seed, num_samples=NUM_ROWS),
        "3 corpora, 8 lanes": Order(
            seed=seed, num_samples=thirds, weights=(5, 3, 2), num_lanes=8, lane_run=32
        ),
    }


def first_batch(order: Order, position: int) -> None:
    """What the stream computes for it: the aligned chunk of 4096 that it is cut from."""
    lanes, places = order.lanes(np.array([position], np.int64))
    start = int(places[0]) // CHUNK * CHUNK
    order.lane_ids(int(lanes[0]), np.arange(start, start + CHUNK, dtype=np.int64))


def seeking(peer: Path | None) -> list[dict[str, Any]]:
    """Seconds (median and largest) and bytes of the first batch; the variants take turns."""
    seconds: dict[tuple[str, int, int], list[float]] = {}
    memory: dict[tuple[str, int, int], int] = {}
    for round_number in range(ROUNDS):
        for position in POSITIONS:
            for name, order in orders(round_number).items():
                key = name, NUM_ROWS, position
                started = time.perf_counter()
                first_batch(order, position)
                seconds.setdefault(key, []).append(time.perf_counter() - started)
        if peer is not None and round_number < PEER_ROUNDS:
            for rows in PEER_ROWS:
                key = PEER, rows, rows * 6 // 10
                plan = ask_peer(peer, rows)
                seconds.setdefault(key, []).append(plan["seconds"])
                memory[key] = max(memory.get(key, 0), plan["bytes"])
    for position in POSITIONS:
        for name, order in orders(ROUNDS).items():
            tracemalloc.start()
            first_batch(order, position)
            memory[name, NUM_ROWS, position] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    return [
        {
            **dict(zip(("order", "rows", "position"), key, strict=True)),
            "median_seconds": statistics.median(times),
            "largest_seconds": max(times),
            "bytes": memory[key],
        }
        for key, times in seconds.items()
    ]


def amortized() -> dict[str, float]:
    """Microseconds a batch of 256 in a run of consecutive positions: median over chunks."""
    result = {}
    for name, order in orders(0).items():
        times = []
        for number in range(200):
            started = time.perf_counter()
            order.lane_ids(0, np.arange(number * CHUNK, (number + 1) * CHUNK, dtype=np.int64))
            times.append(time.perf_counter() - started)
        result[name] = statistics.median(times) * 1e6 * BATCH / CHUNK
    return result


def quality() -> list[dict[str, Any]]:
    """One epoch of a million rows, in several orders."""
    everything = np.arange(QUALITY_ROWS, dtype=np.int64)
    default = Order(seed=1, num_samples=QUALITY_ROWS)
    wide = Order(seed=1, num_samples=QUALITY_ROWS, block_size=64, window_blocks=4096)
    ids = {
        "uniform shuffle (numpy)": np.random.default_rng(1).permutation(QUALITY_ROWS),
        "blocks of 512, windows of 64": default.sample_ids(everything),
        "blocks of 64, windows of 4096": wide.sample_ids(everything),
        "not shuffled": everything,
    }
    return [{"order": name, **figures(sequence)} for name, sequence in ids.items()]


def figures(ids: NDArray[np.int64]) -> dict[str, float]:
    """Reads by window, and how far from a uniform shuffle a sequence of ids is."""
    windows = (ids // 512).reshape(-1, WINDOW)
    batches = (ids // 512).reshape(-1, BATCH)
    places = np.empty_like(ids)
    places[ids] = np.arange(len(ids))
    return {
        "blocks_per_window": float(np.mean([len(np.unique(window)) for window in windows])),
        "blocks_per_batch": float(np.mean([len(np.unique(batch)) for batch in batches[:500]])),
        "rank_correlation": float(spearmanr(np.arange(len(ids)), ids).statistic),
        "serial_correlation": float(np.corrcoef(ids[:-1], ids[1:])[0, 1]),
        "mean_jump": float(np.abs(np.diff(ids)).mean() / len(ids)),
        "neighbours_in_one_batch": float((np.diff(places // BATCH) == 0).mean()),
    }


def p_values() -> dict[str, float]:
    """Of the permutation, at a size that needs cycle walking."""
    size, counts = 1_000_003, np.zeros((32, 32))
    for key in range(8):
        indices = np.arange(key, size, 10)
        np.add.at(counts, (indices * 32 // size, permute(indices, size, key) * 32 // size), 1)
    images = permute(np.arange(size), size, 99).astype(np.float64)
    images -= images.mean()
    result = {"chi_square, 32 x 32 ranges": float(chi2_contingency(counts).pvalue)}
    for lag in (1, 2, 64, 512):
        correlation = (images[:-lag] * images[lag:]).mean() / images.var()
        result[f"serial correlation, lag {lag}"] = float(2 * norm.sf(abs(correlation) * size**0.5))
    return result


def make_peer(cache: Path) -> Path:
    """A Python with the competitor, by itself: it needs numpy only for its plan."""
    folder = cache / "venv"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", PEER, "numpy<3"]
        subprocess.run(install, check=True)
        (folder / "ready").touch()
    return python


def ask_peer(python: Path, num_rows: int) -> dict[str, float]:
    """One plan in a fresh process."""
    script = Path(__file__).parent / "peers" / "plan.py"
    done = subprocess.run(
        [str(python), str(script), str(num_rows)], capture_output=True, text=True, check=True
    )
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def main() -> None:
    """Print tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "order")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = {
        "seeking": seeking(None if args.no_peer else make_peer(args.cache)),
        "microseconds_per_batch": amortized(),
        "quality": quality(),
        "p_values": p_values(),
    }
    print(json.dumps(result, indent=2) if args.json else render(result))


def render(result: dict[str, Any]) -> str:
    """Tables for people."""
    lines = [f"{'first batch':<28}{'rows':>8}{'position':>10}{'ms':>12}{'at most':>12}{'MB':>12}"]
    for row in result["seeking"]:
        milliseconds = (row[f"{which}_seconds"] * 1e3 for which in ("median", "largest"))
        lines.append(
            f"{row['order']:<28}{row['rows']:>8.0e}{row['position']:>10.0e}"
            + "".join(f"{value:>12,.2f}" for value in (*milliseconds, row["bytes"] / 1e6))
        )
    lines += ["", f"{'us a batch of 256, in a run of positions':<48}"]
    lines += [f"{name:<48}{us:>10.1f}" for name, us in result["microseconds_per_batch"].items()]
    columns = list(result["quality"][0])[1:]
    titles = [name.replace("_", " ") for name in columns]
    lines += ["", f"{'epoch of a million rows':<32}" + "".join(f"{t:>25}" for t in titles)]
    for row in result["quality"]:
        lines.append(f"{row['order']:<32}" + "".join(f"{row[name]:>25.5f}" for name in columns))
    lines += ["", "p-values of the permutation"]
    lines += [f"{name:<48}{p:>10.3f}" for name, p in result["p_values"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
