"""What each word of `electra-dist` does: one function a command, called with what was typed.

They return the exit code. Each imports what it needs when it runs, so that no other command waits
for it and a login node needs no torch.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def pretrain(args: argparse.Namespace, overrides: list[str]) -> int:
    """Start a run, or resume it if --out holds a complete checkpoint."""
    from electra_dist.config import files

    # Before torch is loaded: its store would warn on the console of each 500 ms of waiting.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    path = args.config
    if path is None and args.recipe is None and (args.out / "config.json").is_file():
        path = args.out / "config.json"  # a resume needs no other words than --out
    config = files.load(path, overrides, recipe=args.recipe)
    if args.nproc is None:
        from electra_dist.train.main import pretrain

        return pretrain(config, args.out)
    if args.nproc < 1:
        raise UserError(f"--nproc {args.nproc} must be at least 1")
    from electra_dist.launch.local import run_ranks
    from electra_dist.runtime.world import without_launcher_variables

    words = [str(path)] if path else []
    words += ["--recipe", args.recipe] if args.recipe else []
    words += ["--out", str(args.out), *overrides]
    command = [sys.executable, "-m", "electra_dist", "pretrain", *words]
    return run_ranks(command, args.nproc, without_launcher_variables(os.environ), args.out)


def stop(args: argparse.Namespace, _: list[str]) -> int:
    """Ask a run to save and finish, without a requeue."""
    from electra_dist.launch.run_folder import run_status

    _require_run(args.run)
    attempts = run_status(args.run).attempts
    if attempts and attempts[-1].reason is not None:
        raise UserError(
            f"{args.run} is not running: its last attempt ended ({attempts[-1].reason}) "
            f"at step {attempts[-1].step}; there is nothing to stop"
        )
    (args.run / "STOP").touch()
    print(f"{args.run}: will save and finish at its next step")
    return 0


def _require_run(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is not a run folder (it has no config.json); "
            "give the folder that pretrain got as --out"
        )


def status(args: argparse.Namespace, _: list[str]) -> int:
    """Say what a run is doing, from its folder alone."""
    from electra_dist.launch.run_folder import as_json, render, run_status

    status = run_status(args.run)
    print(json.dumps(as_json(status), indent=2) if args.json else render(status))
    return 0


def config_show(args: argparse.Namespace, overrides: list[str]) -> int:
    """Print the resolved config as JSON."""
    from electra_dist.config import files

    print(files.to_json(files.load(args.config, overrides, recipe=args.recipe)), end="")
    return 0


def config_docs(_args: argparse.Namespace, _: list[str]) -> int:
    """Print every knob with its default and meaning."""
    from electra_dist.config.docs import knobs

    print(knobs())
    return 0


def checkpoint_list(args: argparse.Namespace, _: list[str]) -> int:
    """List the complete checkpoints of a run."""
    from electra_dist.checkpoint.layout import CorruptCheckpoint, list_checkpoints, read_manifest

    _require_run(args.run)
    rows: list[dict[str, Any]] = []
    for info in list_checkpoints(args.run):
        row: dict[str, Any] = {"step": info.step, "folder": str(info.folder)}
        try:
            manifest = read_manifest(info.folder)
            row |= {"bytes": manifest.num_bytes, "shards": len(manifest.shards), "problem": None}
        except CorruptCheckpoint as error:
            row |= {"bytes": None, "shards": None, "problem": str(error)}
        rows.append(row)
    if args.json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(f"{args.run} holds no complete checkpoint")
    else:
        for row in rows:
            size = f"{(row['bytes'] or 0) / 2**20:>10,.1f} MiB  {row['shards'] or 0:>4} shards"
            print(f"step {row['step']:>10,}  {row['problem'] or size + '  ' + row['folder']}")
    return 0


def checkpoint_verify(args: argparse.Namespace, _: list[str]) -> int:
    """Check every byte against the hashes; with --repair rebuild what the parity file can."""
    from electra_dist.checkpoint.layout import CorruptCheckpoint, resolve
    from electra_dist.checkpoint.parity import repair
    from electra_dist.checkpoint.reshard import CheckpointReader

    folder = resolve(args.checkpoint).folder
    try:
        for name in repair(folder) if args.repair else ():
            print(f"{folder / name}: rebuilt")
        with CheckpointReader(folder) as reader:
            reader.verify()
    except CorruptCheckpoint as error:
        print(error)
        return 1
    print(f"{folder}: every block is what was written")
    return 0


def checkpoint_diff(args: argparse.Namespace, _: list[str]) -> int:
    """Compare weights and moments bit by bit; exit 1 if they differ."""
    from electra_dist.checkpoint.layout import CorruptCheckpoint, resolve
    from electra_dist.checkpoint.reshard import differences

    try:
        found = differences(resolve(args.one).folder, resolve(args.other).folder)
    except CorruptCheckpoint as error:
        raise UserError(f"{error}; compare checkpoints that verify") from None
    print("\n".join(found) if found else "identical: every weight and moment, bit for bit")
    return 1 if found else 0


def checkpoint_export(args: argparse.Namespace, _: list[str]) -> int:
    """Write the model in another format."""
    from electra_dist.train.export import export_hf

    print(export_hf(args.checkpoint, args.out))
    return 0


def run_finetune(args: argparse.Namespace, _: list[str]) -> int:
    """Fine-tune a pretrained model on a labelled task."""
    from electra_dist.finetune.config import FinetuneConfig, parse_seeds
    from electra_dist.finetune.results import print_result
    from electra_dist.finetune.train import finetune
    from electra_dist.train.export import model_folder

    words = dict(vars(args))
    words |= {"model": model_folder(args.model), "seeds": parse_seeds(args.seeds)}
    logging.basicConfig(format="%(message)s")
    logging.getLogger("electra_dist").setLevel(logging.INFO)  # a line a seed: seeds take minutes
    print_result(finetune(FinetuneConfig(**words)))
    return 0


def run_predict(args: argparse.Namespace, _: list[str]) -> int:
    """Label texts with a fine-tuned model, as JSONL."""
    from electra_dist.serve.predict import predict_file

    rows = predict_file(args.model, args.input, args.out)
    if args.out is None:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    return 0
