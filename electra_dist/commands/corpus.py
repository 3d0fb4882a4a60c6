"""`corpus`, `vocab` and `trace`: text, vocabularies, the order of a run."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

from electra_dist.errors import UserError


def corpus_build(args: argparse.Namespace, _: list[str]) -> int:
    """Tokenize text into a corpus, once for all lengths."""
    from electra_dist.data.build import build_corpus
    from electra_dist.data.build_options import options_from_words
    from electra_dist.runtime.progress import ProgressDisplay

    options = options_from_words(vars(args))
    with ProgressDisplay() as display:
        summary = build_corpus(options, display)
    print(
        f"{summary.folder}: {summary.documents:,} documents, {summary.tokens:,} tokens, "
        f"vocabulary {summary.vocab_size:,}; held out {summary.held_out_documents:,} documents; "
        f"left out {summary.duplicates:,} duplicates and {summary.near_duplicates:,} near "
        f"duplicates; quarantined {summary.quarantined:,} records"
    )
    if not summary.held_out_documents:
        _warn_nothing_held_out()
    return 0


def _warn_nothing_held_out() -> None:
    print(
        "warning: no document is held out, so runs on this corpus are not evaluated; "
        "to change that, build it again with a larger --held-out-share",
        file=sys.stderr,
    )


def corpus_pack(args: argparse.Namespace, _: list[str]) -> int:
    """Cut a corpus into examples of one length."""
    from electra_dist.data.frozen import freeze
    from electra_dist.data.packing import pack
    from electra_dist.data.store import Corpus, Packing
    from electra_dist.runtime.progress import ProgressDisplay

    with ProgressDisplay() as display:
        folder = pack(
            *(args.corpus, args.length, args.mode, args.seed),
            num_workers=args.workers,
            report=display,
        )
    corpus = Corpus.open(args.corpus)
    packing = Packing.open(corpus, args.length, args.mode)
    frozen = freeze(corpus, packing, args.mask_prob)
    print(f"{folder}: {packing.num_examples:,} examples of at most {args.length} tokens")
    if frozen is None:
        _warn_nothing_held_out()
    return 0


def corpus_verify(args: argparse.Namespace, _: list[str]) -> int:
    """Check every file of a corpus against its hashes."""
    from electra_dist.data.verify import verify_corpus

    problems = verify_corpus(args.corpus)
    print(
        "\n".join(problems) if problems else f"{args.corpus}: every file is what the manifest says"
    )
    return 1 if problems else 0


def corpus_info(args: argparse.Namespace, _: list[str]) -> int:
    """Say what is in a corpus."""
    from electra_dist.data.info import corpus_info
    from electra_dist.data.info_text import render_info

    if args.plot is not None:
        from electra_dist.data.plot import check_plot, plot_corpus

        check_plot(args.plot)
    info = corpus_info(args.corpus)
    if args.plot is not None:
        plot_corpus(info, args.plot)
    print(json.dumps(info, indent=2) if args.json else render_info(info))
    return 0


def corpus_audit(args: argparse.Namespace, overrides: list[str]) -> int:
    """Prove that a run used each position once."""
    from electra_dist.train.audit import audit, render

    steps = None if args.steps is None else steps_range(args.steps)
    found = audit(args.run, overrides, steps, _report_steps())
    print(json.dumps(found.to_json(), indent=2) if args.json else render(found))
    return 1 if found.problems else 0


def _report_steps() -> Callable[[int, int], None]:
    from electra_dist.runtime.progress import LOG_SECONDS

    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            print(f"{done:,} of {total:,} steps checked", file=sys.stderr, flush=True)

    return report


def trace(args: argparse.Namespace, overrides: list[str]) -> int:
    """Say what each rank reads in some steps: rows, masks, hashes; without a model."""
    from electra_dist.config import files
    from electra_dist.data.corpora import Corpora
    from electra_dist.data.trace import TITLES, describe, render, trace

    steps = steps_range(args.steps)
    path = args.config  # a run folder holds the config that it runs with
    if path is not None and (path / "config.json").is_file():
        path = path / "config.json"
    config = files.load(path, overrides, recipe=args.recipe)
    corpora = Corpora.open(config.data)
    num_steps = config.schedule.num_steps
    if steps.stop > num_steps:
        print(
            f"warning: --steps {args.steps} goes beyond schedule.num_steps = {num_steps}; "
            f"updates from {num_steps} on are never made",
            file=sys.stderr,
        )
    records = trace(config, corpora, steps, args.world_size, args.ranks_per_node)
    if not args.json:
        for number, record in enumerate(records):
            print("\n".join(render(record)) if number else "\n".join([TITLES, *render(record)]))
        return 0
    head = json.dumps({"world_size": args.world_size, "seed": config.seed, **describe(corpora)})
    print(f'{head[:-1]}, "steps": [')  # step by step: the whole may be larger than memory
    for number, record in enumerate(records):
        print("," * (number > 0) + json.dumps(record))
    print("]}")
    return 0


def steps_range(words: str) -> range:
    """`A:B` as the updates A to B - 1."""
    first, colon, last = words.partition(":")
    if colon and first.isdecimal() and last.isdecimal() and int(first) < int(last):
        return range(int(first), int(last))
    raise UserError(f"--steps {words} must be A:B with A below B; updates are counted from 0")


def vocab_train(args: argparse.Namespace, _: list[str]) -> int:
    """Train a WordPiece vocabulary on text, and measure it on text held out."""
    from electra_dist.data.vocab import render_trained, text_input, train_vocab
    from electra_dist.runtime.progress import Progress, ProgressDisplay

    with ProgressDisplay() as display:
        made = train_vocab(
            text_input(args.input, args.source, args.field),
            args.out,
            vocab_size=args.size,
            lowercase=not args.cased,
            strip_accents=args.strip_accents,
            sample_bytes=args.sample_bytes,
            held_out_share=args.held_out_share,
            report=lambda done: display(
                Progress(phase="reading", num_bytes=done, total_bytes=None)
            ),
        )
    print(json.dumps(made, indent=2) if args.json else render_trained(made))
    return 0


def vocab_report(args: argparse.Namespace, _: list[str]) -> int:
    """Measure how a tokenizer fits a text: fertility, unknown tokens."""
    from electra_dist.data.vocab import render_report, text_input, vocab_report

    found = vocab_report(
        args.tokenizer,
        text_input(args.input, args.source, args.field),
        lowercase=not args.cased,
        strip_accents=args.strip_accents,
        sample_bytes=args.sample_bytes,
    )
    print(json.dumps(found, indent=2) if args.json else render_report(found))
    return 0
