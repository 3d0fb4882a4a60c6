"""What reading costs beside tokenizing: MB of text a CPU second, and parsing as a share.

    python benchmarks/sources.py INPUT... --source text --tokenizer FILE [--rounds 5] [--json]

`cut` is `pieces` (the parent: reading, decompressing, cutting), `parse` what a worker does before
tokenizing (decoding, cleaning, splitting), `tokenize` the tokenizers library's bare
`encode_batch_fast` on the sentences found. They take turns piece by piece on one thread; reported
are medians over the rounds of CPU time, so that other users of the machine matter little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from electra_dist.data import sources  # noqa: E402
from electra_dist.data.sources import SourceOptions  # noqa: E402
from electra_dist.data.tokenize import load_tokenizer  # noqa: E402


def measure(words: argparse.Namespace, splitter: str) -> dict[str, float]:
    """Seconds of CPU for each step of one round, and the MB of payload."""
    options = SourceOptions(splitter=splitter)
    tokenizer = load_tokenizer(words.tokenizer)
    seconds = {"cut": 0.0, "parse": 0.0, "tokenize": 0.0}
    num_bytes = 0
    for index, file in enumerate(sources.find_files(words.inputs, words.source)):
        pieces = sources.pieces(words.source, file, index, options)
        while True:
            times = [time.process_time()]
            piece = next(pieces, None)
            times.append(time.process_time())
            seconds["cut"] += times[1] - times[0]
            if piece is None:
                break
            parsed = sources.parse(words.source, piece, options)
            times.append(time.process_time())
            sentences = [s for document in parsed.documents for s in document.sentences]
            start = time.process_time()
            tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
            seconds["tokenize"] += time.process_time() - start
            seconds["parse"] += times[2] - times[1]
            num_bytes += len(piece.payload)
    return seconds | {"mb": num_bytes / 1e6}


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--source", default="text")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    result = {}
    for splitter in ("punctuation", "lines"):
        rounds = [measure(words, splitter) for _ in range(words.rounds)]
        shares = [100 * r["parse"] / r["tokenize"] for r in rounds]
        result[splitter] = {
            **{
                f"{step}_mb_per_s": statistics.median(r["mb"] / r[step] for r in rounds)
                for step in ("cut", "parse", "tokenize")
            },
            "parse_percent_of_tokenize": statistics.median(shares),
            "spread": [min(shares), max(shares)],
        }
    if words.json:
        print(json.dumps(result, indent=2))
        return
    print("splitter      cut MB/s  parse MB/s  tokenize MB/s  parse, % of tokenize")
    for splitter, r in result.items():
        low, high = r["spread"]
        print(
            f"{splitter:12} {r['cut_mb_per_s']:9.0f} {r['parse_mb_per_s']:11.0f}"
            f" {r['tokenize_mb_per_s']:14.2f} {r['parse_percent_of_tokenize']:12.1f}"
            f" ({low:.1f} to {high:.1f})"
        )


if __name__ == "__main__":
    main()
