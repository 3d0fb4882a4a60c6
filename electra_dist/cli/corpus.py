"""The words of `corpus` and `vocab`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from electra_dist.cli.build_words import (
    add_build_words,
    add_vocab_report_words,
    add_vocab_train_words,
)
from electra_dist.cli.parser import command, group
from electra_dist.commands import corpus


def add_corpus(parent: Any) -> None:
    """Declare `corpus` and what stands under it."""
    words = group(parent, "corpus", "turn text into a token store, pack it, look at it")
    build = command(words, "build", corpus.corpus_build)
    add_build_words(build)
    pack = command(words, "pack", corpus.corpus_pack)
    pack.add_argument("corpus", type=Path, metavar="CORPUS")
    pack.add_argument(
        "--length", type=int, default=128, help="tokens in a row (default %(default)s)"
    )
    pack.add_argument(
        "--mode",
        default="full",
        choices=("full", "google", "packed"),
        help="full keeps every token (default), google drops what does not fit, packed fills rows "
        "with several documents",
    )
    pack.add_argument("--seed", type=int, default=0)
    pack.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    pack.add_argument(
        "--mask-prob",
        type=float,
        default=0.15,
        help="of the recorded held-out masks (default %(default)s)",
    )
    verify = command(words, "verify", corpus.corpus_verify)
    verify.add_argument("corpus", type=Path, metavar="CORPUS")
    info = command(words, "info", corpus.corpus_info)
    info.add_argument("corpus", type=Path, metavar="CORPUS")
    info.add_argument("--json", action="store_true", help="one JSON document")
    info.add_argument("--plot", type=Path, metavar="PNG", help="the same as a figure")
    audit = command(words, "audit", corpus.corpus_audit)
    audit.add_argument("run", type=Path, metavar="RUN")
    audit.add_argument(
        "--steps", metavar="A:B", help="make only these checksums again (default: all)"
    )
    audit.add_argument("--json", action="store_true", help="one JSON document")


def add_vocab(parent: Any) -> None:
    """Declare `vocab` and what stands under it."""
    words = group(parent, "vocab", "train a vocabulary, measure how one fits a text")
    add_vocab_train_words(command(words, "train", corpus.vocab_train))
    add_vocab_report_words(command(words, "report", corpus.vocab_report))
