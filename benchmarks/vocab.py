"""Training a WordPiece vocabulary: from counted words against the library reading the text itself.

    python benchmarks/vocab.py --input books/ --size 2048 --rounds 3 [--json FILE]

Both give the same vocabulary (checked). CPU seconds are of all threads; runs alternate.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from electra_dist.data.sampling import sample_sentences
from electra_dist.data.vocab import (
    alphabet_of,
    text_input,
    train_wordpiece,
    wordpiece_trainer,
)


def train_plainly(sentences: list[str], size: int) -> dict[str, int]:
    """The same alphabet and trainer; each sentence is normalized twice, each word each time."""
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(normalizer.normalize_str(sentence))
    alphabet, inside_words = alphabet_of(counts, size, normalizer, splitter)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.train_from_iterator(
        sentences, trainer=wordpiece_trainer(size, alphabet, inside_words)
    )
    found: dict[str, int] = tokenizer.get_vocab()
    return found


def train_counted(sentences: Iterable[str], size: int) -> dict[str, int]:
    """What `vocab train` does."""
    found: dict[str, int] = train_wordpiece(sentences, size).get_vocab()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", nargs="+", required=True)
    parser.add_argument("--source", default="text")
    parser.add_argument("--sample-bytes", type=int, default=256 << 20)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sentences = list(sample_sentences([text_input(args.input, args.source)], args.sample_bytes))
    seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "counted": []}
    vocabularies = []
    for _ in range(args.rounds):
        for name, train in (("plain", train_plainly), ("counted", train_counted)):
            wall, cpu = time.perf_counter(), time.process_time()
            vocabularies.append(train(sentences, args.size))
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    assert all(one == vocabularies[0] for one in vocabularies), "the vocabularies differ"
    characters = sum(map(len, sentences))
    print(f"{characters / 1e6:,.1f} M characters, {args.size:,} entries, {args.rounds} rounds")
    result: dict[str, float] = {"characters": characters}
    for column, unit in enumerate(("wall", "CPU")):
        for name, runs in seconds.items():
            values = [run[column] for run in runs]
            result[f"{name}_{unit}_seconds"] = statistics.median(values)
            print(
                f"{name:>8} {unit:>4} s: median {statistics.median(values):7.2f}"
                f"  ({min(values):.2f} to {max(values):.2f})"
            )
        ratio = result[f"plain_{unit}_seconds"] / result[f"counted_{unit}_seconds"]
        result[f"{unit}_ratio"] = ratio
        print(f"   ratio {unit:>4}  : {ratio:.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
