"""Does a corpus decode back to the text that it was built from? For WordPiece, every Nth document.

    python benchmarks/round_trip.py CORPUS --source text|jsonl --input FILE... [--every 10] [--json]

The files (plain, gzip or xz) are read here in the simplest way, apart from `data/sources.py`, and
go through the tokenizer's own normalisation only. A document comes back if the tokens of a stored
one spell the same characters, white space aside; an [UNK] may stand for any characters. Documents
come back `whole`, `with_unknown` tokens, or are `missing`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from electra_dist.data.store import Corpus
from electra_dist.data.tokenize import load_tokenizer

OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def raw_documents(path: Path, source: str) -> Iterator[str]:
    """What stands between blank lines, or in the field `text` of each line."""
    text = OPENERS.get(path.suffix, open)(path, "rb").read().decode(errors="replace")
    if source == "jsonl":
        yield from (json.loads(line)["text"] for line in text.split("\n") if line.strip())
    else:
        yield from (part for part in re.split(r"\n[^\S\n]*\n", text) if part.strip())


def stored_documents(corpus: Corpus) -> Iterator[str]:
    """All documents, spelled without white space; "[UNK]" where a word was unknown."""
    tokenizer = load_tokenizer(corpus.tokenizer_path)
    tokens = [tokenizer.id_to_token(i) or "" for i in range(corpus.vocab_size)]
    spelled = np.array([token.removeprefix("##") for token in tokens], object)
    for split in ("train", "held_out"):
        for shard in corpus.shards(split):
            ends = shard.sentence_offsets[shard.document_offsets].tolist()
            for start, end in pairwise(ends):
                yield "".join(spelled[shard.tokens[start:end]])


def main() -> None:
    """Print the counts; exit 1 if a document is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--source", default="text", choices=("text", "jsonl"))
    parser.add_argument("--input", nargs="+", type=Path, required=True)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    corpus = Corpus.open(args.corpus)
    normalize = load_tokenizer(corpus.tokenizer_path).normalizer.normalize_str
    whole, patterns = set(), []
    for document in stored_documents(corpus):
        if "[UNK]" in document:
            parts = map(re.escape, document.split("[UNK]"))
            patterns.append((document.split("[UNK]")[0], re.compile("(?s:.+?)".join(parts))))
        else:
            whole.add(document)
    counts = {"sampled": 0, "whole": 0, "with_unknown": 0, "missing": 0}
    documents = (d for path in args.input for d in raw_documents(path, args.source))
    for number, document in enumerate(documents):
        wanted = "".join(normalize(document).split())
        if number % args.every or not wanted:
            continue
        counts["sampled"] += 1
        if wanted in whole:
            counts["whole"] += 1
        elif any(wanted.startswith(start) and p.fullmatch(wanted) for start, p in patterns):
            counts["with_unknown"] += 1
        else:
            counts["missing"] += 1
            print(f"missing, document {number}: {document[:80]!r}", file=sys.stderr)
    print(json.dumps(counts) if args.json else "  ".join(f"{k} {v:,}" for k, v in counts.items()))
    sys.exit(1 if counts["missing"] else 0)


if __name__ == "__main__":
    main()
