"""The words of `corpus build`, `vocab train` and `vocab report`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_build_words(build: argparse.ArgumentParser) -> None:
    """Adds them to the command's parser; data/build_options.py makes options of them."""
    one = build.add_argument_group("one source, or several in a file")
    one.add_argument("--input", nargs="+", metavar="PATH", help="files, folders, globs, addresses")
    one.add_argument("--source", help="text, jsonl, parquet or hf (default text)")
    one.add_argument("--field", help="jsonl, parquet, hf: what holds the text (default text)")
    one.add_argument("--hf-name", metavar="NAME", help="hf: configuration of the data set")
    one.add_argument("--hf-split", metavar="NAME", help="hf: split to read (default train)")
    one.add_argument("--splitter", help="how a line becomes sentences (default punctuation)")
    one.add_argument("--license", metavar="TEXT", help="recorded in the manifest")
    one.add_argument(
        "--weight",
        type=float,
        metavar="NUMBER",
        help="how often a document stands in the corpus (default 1); held-out ones once",
    )
    one.add_argument("--sources", type=Path, metavar="FILE.toml", help="[[source]] tables instead")

    tokenizer = build.add_argument_group("tokenizer")
    tokenizer.add_argument(
        "--tokenizer",
        default="train",
        help="tokenizer.json, WordPiece vocab.txt, or train (default)",
    )
    tokenizer.add_argument(
        "--vocab-size", type=int, default=8192, help="for --tokenizer train (default %(default)s)"
    )
    tokenizer.add_argument(
        "--vocab-sample-bytes",
        type=int,
        default=256 << 20,
        metavar="BYTES",
        help="text to train it on, spread over the input (default %(default)s)",
    )
    tokenizer.add_argument(
        "--cased", action="store_true", help="keep case and accents; for train and vocab.txt"
    )
    tokenizer.add_argument(
        "--strip-accents",
        action=argparse.BooleanOptionalAction,
        help="for train and vocab.txt (default: unless --cased)",
    )

    documents = build.add_argument_group("documents")
    documents.add_argument(
        "--dedup",
        default="exact",
        metavar="exact|near|none",
        help="duplicates that are left out (default %(default)s)",
    )
    documents.add_argument(
        "--near-threshold",
        type=float,
        default=0.8,
        metavar="SHARE",
        help="Jaccard similarity of near duplicates (default %(default)s)",
    )
    documents.add_argument(
        "--held-out-share",
        type=float,
        default=0.005,
        metavar="SHARE",
        help="documents never trained on (default %(default)s)",
    )
    documents.add_argument(
        "--max-quarantine-share",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="bad records that fail the build (default %(default)s)",
    )
    for name, size in (("document", "64 MiB"), ("sentence", "1 MiB")):
        documents.add_argument(
            f"--max-{name}-bytes",
            type=int,
            metavar="BYTES",
            help=f"a longer {name} is split (default {size})",
        )

    build.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    build.add_argument(
        "--shard-tokens",
        type=int,
        default=64 << 20,
        help="tokens in one file at most (default %(default)s)",
    )
    build.add_argument("--out", required=True, type=Path, metavar="CORPUS")


def add_vocab_train_words(train: argparse.ArgumentParser) -> None:
    """The words of `vocab train`."""
    train.add_argument(
        "--size", type=int, default=30522, help="entries at most (default %(default)s)"
    )
    _add_text_words(train, sample_bytes=256 << 20)
    train.add_argument("--cased", action="store_true", help="keep case and accents")
    train.add_argument(
        "--strip-accents",
        action=argparse.BooleanOptionalAction,
        help="default: unless --cased",
    )
    train.add_argument(
        "--held-out-share",
        type=float,
        default=0.005,
        help="documents measured instead of trained on (default %(default)s, as in a corpus)",
    )
    train.add_argument("--out", required=True, type=Path, help="vocab.txt or tokenizer.json")
    train.add_argument("--json", action="store_true", help="one JSON document")


def add_vocab_report_words(report: argparse.ArgumentParser) -> None:
    """The words of `vocab report`."""
    report.add_argument(
        "--tokenizer", required=True, type=Path, help="tokenizer.json or WordPiece vocab.txt"
    )
    _add_text_words(report, sample_bytes=16 << 20)
    report.add_argument(
        "--cased", action="store_true", help="a vocab.txt of cased text, with accents"
    )
    report.add_argument(
        "--strip-accents",
        action=argparse.BooleanOptionalAction,
        help="for a vocab.txt (default: unless --cased)",
    )
    report.add_argument("--json", action="store_true", help="one JSON document")


def _add_text_words(parser: argparse.ArgumentParser, sample_bytes: int) -> None:
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="files, folders, globs, addresses"
    )
    parser.add_argument(
        "--source", default="text", help="text, jsonl, parquet or hf (default %(default)s)"
    )
    parser.add_argument(
        "--field",
        default="text",
        help="jsonl, parquet, hf: what holds the text (default %(default)s)",
    )
    parser.add_argument(
        "--sample-bytes",
        type=int,
        default=sample_bytes,
        metavar="BYTES",
        help=f"of a larger input, read this much (default {sample_bytes >> 20} MiB)",
    )
