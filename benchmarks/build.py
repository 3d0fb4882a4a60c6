"""Tokens a second of a corpus build, against the tokenizers library alone on the same sentences.

    python benchmarks/build.py [--input PATH...] [--tokenizer FILE] [--rounds 5] [--json]
    python benchmarks/build.py --memory [--json]

`build` is the whole of `corpus build --workers 2 --dedup exact`: starting workers, reading,
cleaning, splitting, encoding, hashing, finding duplicates, writing and syncing. `bare` is
`encode_batch_fast(add_special_tokens=False)` on the same sentences, which lie in memory as Python
strings, in one process with the library's own threads on all cores; not even the ids are taken out.
They take turns, each in a process of its own, and are timed inside it. On a machine that is shared
look at the ratio of CPU time too: the processes of the build get a larger share of the cores.

--memory: the growth of the sum of the peaks of resident memory of parent and workers from 0.25 to
1 GB of input, less 16 bytes a document, in MB for each GB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

from electra_dist.data import sources  # noqa: E402 (the package is beside us)
from electra_dist.data.build import build_corpus  # noqa: E402
from electra_dist.data.build_options import BuildOptions, SourceSpec  # noqa: E402
from electra_dist.data.tokenize import load_tokenizer  # noqa: E402

WORKERS = 2
BARE_BATCH_SENTENCES = 10_000
MEMORY_BYTES = (250_000_000, 1_000_000_000)
"""Sizes of input that `--memory` compares."""
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in ("a", "e", "i", "o", "u", "ai", "er", "on")]


def write_text(path: Path, num_bytes: int, seed: int = 0) -> Path:
    """Made-up prose: 30,000 words by Zipf's law, paragraphs a line, about 5 kB a document."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 5, 30_000)
    words = ["".join(rng.choice(SYLLABLES, n)) for n in lengths]
    shares = 1 / np.arange(10, 30_010)
    cumulative = np.cumsum(shares / shares.sum())
    with path.open("w") as file:
        while file.tell() < num_bytes:
            drawn = np.searchsorted(cumulative, rng.random(200_000)).tolist()
            ends = np.cumsum(rng.integers(6, 30, 12_000)).tolist()
            start = 0
            for number, end in enumerate(ends):
                if end > len(drawn):
                    break
                sentence = " ".join([words[i] for i in drawn[start:end]]).capitalize() + ". "
                start = end
                # A paragraph has 5 sentences, a document 8 paragraphs.
                file.write(sentence + "\n" * (number % 5 == 4) + "\n" * (number % 40 == 39))
    return path


def options(inputs: Iterable[Path], tokenizer: str, out: Path, dedup: str) -> BuildOptions:
    """What is measured."""
    spec = SourceSpec(inputs=tuple(map(str, inputs)))
    return BuildOptions(
        sources=(spec,), out=out, tokenizer=tokenizer, num_workers=WORKERS, dedup=dedup
    )


def build(inputs: list[Path], tokenizer: str, out: Path, dedup: str = "exact") -> dict[str, float]:
    """A build, timed."""
    started, cpu_started = time.perf_counter(), cpu_seconds()
    summary = build_corpus(options(inputs, tokenizer, out, dedup))
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": cpu_seconds() - cpu_started,
        "tokens": summary.tokens + summary.held_out_tokens,
    }


def bare(inputs: list[Path], tokenizer: str, _out: Path, _dedup: str) -> dict[str, float]:
    """The library alone, timed."""
    how = sources.SourceOptions()
    files = sources.find_files([str(path) for path in inputs])
    documents = (document for file in files for document in sources.read("text", file, how))
    sentences: list[str] = []
    for document in documents:
        sentences += document.sentences
    encoder = load_tokenizer(tokenizer)
    started, cpu_started = time.perf_counter(), cpu_seconds()
    tokens = 0
    for start in range(0, len(sentences), BARE_BATCH_SENTENCES):
        batch = sentences[start : start + BARE_BATCH_SENTENCES]
        tokens += sum(map(len, encoder.encode_batch_fast(batch, add_special_tokens=False)))
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": cpu_seconds() - cpu_started,
        "tokens": tokens,
    }


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run(
    what: str, inputs: list[Path], tokenizer: str, folder: Path, dedup: str
) -> dict[str, float]:
    """One measurement in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    out = folder / "corpus"
    process = context.Process(target=_child, args=(what, inputs, tokenizer, out, dedup, sender))
    process.start()
    sender.close()
    result: dict[str, float] = receiver.recv()
    process.join()
    shutil.rmtree(out, ignore_errors=True)
    return result


def _child(
    what: str, inputs: list[Path], tokenizer: str, out: Path, dedup: str, sender: Connection
) -> None:
    result = {"build": build, "bare": bare}[what](inputs, tokenizer, out, dedup)
    sender.send(result)


def speed(
    inputs: list[Path], tokenizer: str, folder: Path, rounds: int, dedup: str
) -> dict[str, Any]:
    """Tokens a second of both, interleaved, and the median of the ratios of the rounds."""
    results: dict[str, list[dict[str, float]]] = {"build": [], "bare": []}
    for number in range(rounds):
        # Who goes first takes turns as well.
        for what in ("build", "bare") if number % 2 else ("bare", "build"):
            results[what].append(run(what, inputs, tokenizer, folder, dedup))
    # All that was encoded; duplicates that the build leaves out afterwards are no part of its own.
    tokens = results["bare"][0]["tokens"]
    rates = {name: [tokens / r["seconds"] for r in found] for name, found in results.items()}
    ratios = {
        what: [b[what] / a[what] for a, b in zip(results["build"], results["bare"], strict=True)]
        for what in ("seconds", "cpu_seconds")
    }
    return {
        "tokens": tokens,
        "rounds": rounds,
        "dedup": dedup,
        "ratio": _spread(ratios["seconds"]),
        "cpu_ratio": _spread(ratios["cpu_seconds"]),
        "tokens_per_second": {name: _spread(found) for name, found in rates.items()},
    }


def memory(folder: Path, sizes: Sequence[int], tokenizer: str | None) -> dict[str, Any]:
    """Peaks of resident memory of builds of two sizes."""
    rows = []
    for num_bytes in sizes:
        text = write_text(folder / "text.txt", num_bytes)
        tokenizer = tokenizer or str(small_tokenizer(folder))
        process = multiprocessing.get_context("spawn").Process(
            target=build, args=([text], tokenizer, folder / "corpus")
        )
        process.start()
        peaks: dict[int, int] = {}
        while process.is_alive():
            for pid, peak in _peaks(process.pid or 0):
                peaks[pid] = max(peaks.get(pid, 0), peak)
            time.sleep(0.05)
        assert process.exitcode == 0
        manifest = json.loads((folder / "corpus" / "manifest.json").read_bytes())
        documents = sum(split["documents"] for split in manifest["splits"].values())
        shutil.rmtree(folder / "corpus")
        rows.append(
            {
                "input_bytes": num_bytes,
                "documents": documents,
                "peak_bytes": sum(peaks.values()),
                "peak_bytes_of_each": sorted(peaks.values()),
            }
        )
    small, large = rows
    growth = large["peak_bytes"] - small["peak_bytes"]
    allowed = 16 * (large["documents"] - small["documents"])
    gigabytes = (large["input_bytes"] - small["input_bytes"]) / 1e9
    return {"builds": rows, "growth_mb_per_gb": (growth - allowed) / 1e6 / gigabytes}


def small_tokenizer(folder: Path) -> Path:
    """A WordPiece of 30,000 entries, trained on made-up text of the same words."""
    path = folder / "tokenizer.json"
    if not path.exists():
        text = write_text(folder / "sample.txt", 20_000_000)
        spec = SourceSpec(inputs=(str(text),))
        out = folder / "trained"
        build_corpus(BuildOptions(sources=(spec,), out=out, vocab_size=30_000))
        (out / "tokenizer.json").rename(path)
        shutil.rmtree(out)
        text.unlink()
    return path


def _peaks(pid: int) -> list[tuple[int, int]]:
    """The process and all below it, with the peak of resident memory of each, in bytes."""
    found = []
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            status = Path(f"/proc/{process.pid}/status").read_text()
            found.append((process.pid, int(status.split("VmHWM:")[1].split()[0]) * 1024))
    except (psutil.NoSuchProcess, OSError, IndexError):
        pass  # it ended while we looked
    return found


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", nargs="+", type=Path, help="text; default: made-up")
    parser.add_argument("--tokenizer", help="default: one trained on the made-up text")
    parser.add_argument("--megabytes", type=int, default=48, help="of made-up text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dedup", default="exact", choices=("exact", "near", "none"))
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--sizes", nargs=2, type=int, default=MEMORY_BYTES, help="for --memory")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary one")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        if args.memory:
            found = memory(folder, args.sizes, args.tokenizer)
        else:
            text = args.input or [write_text(folder / "text.txt", args.megabytes * 10**6)]
            tokenizer = args.tokenizer or str(small_tokenizer(folder))
            found = speed(text, tokenizer, folder, args.rounds, args.dedup)
    if args.json:
        print(json.dumps(found, indent=2))
    elif args.memory:
        print(f"{'input':>10}{'documents':>12}{'peak':>12}")
        for row in found["builds"]:
            sizes = f"{row['input_bytes'] / 1e9:>7.2f} GB{row['documents']:>12,}"
            print(f"{sizes}{row['peak_bytes'] / 1e6:>9,.1f} MB")
        print(f"growth less 16 bytes a document: {found['growth_mb_per_gb']:.1f} MB for each GB")
    else:
        print(f"{'':<24}{'median':>12}{'low':>12}{'high':>12}")
        for name, row in found["tokens_per_second"].items():
            numbers = "".join(f"{row[key]:>12,.0f}" for key in ("median", "low", "high"))
            print(f"{name + ', tokens/s':<24}{numbers}")
        for name, key in (("build / bare", "ratio"), ("by CPU time", "cpu_ratio")):
            numbers = "".join(f"{found[key][of]:>12.3f}" for of in ("median", "low", "high"))
            print(f"{name:<24}{numbers}")


if __name__ == "__main__":
    main()
