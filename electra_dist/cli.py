"""The words that a user types. Each command imports what it needs when it runs, so that `--help` is instant."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from electra_dist.errors import UserError

Handler = Callable[[argparse.Namespace, list[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 the user's mistake, 75 stopped on request, 1 anything else."""
    words, overrides = split_overrides(list(sys.argv[1:] if argv is None else argv))
    parser = make_parser()
    args = parser.parse_args(words)
    if overrides and not args.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    try:
        handler: Handler = args.handler
        return handler(args, overrides)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # one sentence, not one a rank
            print(f"electra-dist: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `electra-dist ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Take `--section.field value` and `--seed value` out of the words: tyro reads these, argparse the rest."""
    from electra_dist.config.files import is_flag

    plain: list[str] = []
    overrides: list[str] = []
    while words:
        word = words.pop(0)
        is_override = word.startswith("--") and (
            "." in word.split("=")[0] or word.split("=")[0] == "--seed"
        )
        (overrides if is_override else plain).append(word)
        if is_override and "=" not in word and words and not is_flag(word) and words[0][:2] != "--":
            overrides.append(words.pop(0))
    return plain, overrides


def make_parser() -> argparse.ArgumentParser:
    """All commands and their words."""
    parser = argparse.ArgumentParser(
        prog="electra-dist",
        description="Pretrain, resume, export and fine-tune ELECTRA on a cluster.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_corpus(commands)
    _add_pretrain(commands)
    _add_checkpoint(commands)
    _add_finetune(commands)
    return parser


def _command(
    commands: Any,
    name: str,
    handler: Handler,
    words: str,
    *,
    takes_overrides: bool = False,
    **more: Any,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=words, description=words, allow_abbrev=False, **more
    )
    parser.set_defaults(handler=handler, takes_overrides=takes_overrides)
    return parser


def _group(commands: Any, name: str, words: str) -> Any:
    group = commands.add_parser(name, help=words, description=words)
    return group.add_subparsers(required=True, metavar="COMMAND")


def _add_corpus(commands: Any) -> None:
    corpus = _group(commands, "corpus", "turn text into a token store, pack it, look at it")
    build = _command(
        corpus, "build", _corpus_build, "tokenize text into a corpus, once for all lengths"
    )
    build.add_argument("--source", default="text", help="text or jsonl (default %(default)s)")
    build.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="files, folders, globs; .gz .xz .bz2 too",
    )
    build.add_argument(
        "--tokenizer",
        default="train",
        help="tokenizer.json, WordPiece vocab.txt, or train (default)",
    )
    build.add_argument(
        "--vocab-size", type=int, default=8192, help="for --tokenizer train (default %(default)s)"
    )
    build.add_argument(
        "--cased", action="store_true", help="keep case and accents; for train and vocab.txt"
    )
    build.add_argument(
        "--field", default="text", help="jsonl: the field that holds the text (default %(default)s)"
    )
    build.add_argument(
        "--held-out-share",
        type=float,
        default=0.005,
        help="documents never trained on (default %(default)s)",
    )
    build.add_argument(
        "--max-quarantine-share",
        type=float,
        default=0.01,
        help="bad records that fail the build (default %(default)s)",
    )
    build.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    build.add_argument("--out", required=True, type=Path, metavar="CORPUS")
    pack = _command(corpus, "pack", _corpus_pack, "cut a corpus into examples of one length")
    pack.add_argument("corpus", type=Path, metavar="CORPUS")
    pack.add_argument(
        "--length", type=int, default=128, help="tokens in a row (default %(default)s)"
    )
    pack.add_argument(
        "--mode",
        default="full",
        choices=("full", "google"),
        help="full keeps every token (default)",
    )
    pack.add_argument("--seed", type=int, default=0)
    pack.add_argument(
        "--mask-prob",
        type=float,
        default=0.15,
        help="of the recorded held-out masks (default %(default)s)",
    )
    verify = _command(
        corpus, "verify", _corpus_verify, "check every file of a corpus against its hashes"
    )
    verify.add_argument("corpus", type=Path, metavar="CORPUS")
    info = _command(corpus, "info", _corpus_info, "what is in a corpus")
    info.add_argument("corpus", type=Path, metavar="CORPUS")
    info.add_argument("--json", action="store_true", help="one JSON document")
    vocab = _group(commands, "vocab", "train a vocabulary")
    train = _command(vocab, "train", _vocab_train, "train a WordPiece vocabulary on text")
    train.add_argument("--input", nargs="+", required=True, metavar="PATH")
    train.add_argument("--source", default="text", help="text or jsonl (default %(default)s)")
    train.add_argument(
        "--size", type=int, default=30522, help="entries at most (default %(default)s)"
    )
    train.add_argument("--cased", action="store_true", help="keep case and accents")
    train.add_argument("--out", required=True, type=Path, help="vocab.txt or tokenizer.json")


_KNOBS = """common knobs (--section.field value; `electra-dist config docs` lists all):
  --data.corpus CORPUS              --data.sequence_length 128
  --batch.global_batch_size 128     --batch.micro_batch_size 32
  --schedule.num_steps 1000000      --schedule.warmup_steps 10000   --schedule.stop_step N
  --optim.learning_rate 5e-4        --optim.weight_decay 0.01       --optim.clip_norm 1.0
  --objective.name electra|mlm      --objective.mask_prob 0.15      --objective.disc_weight 50
  --model.hidden_size 256           --model.num_layers 12           --model.generator_hidden_size 64
  --engine.kind deepspeed|reference --engine.zero_stage 0|1|2|3     --engine.precision fp32|bf16
  --engine.deepspeed_config JSON    --engine.threads_per_rank N
  --checkpoint.every_steps 1000     --checkpoint.keep_last 3
  --metrics.log_every 10            --metrics.eval_every 1000       --seed 0
sections: model objective data batch optim schedule engine checkpoint resilience metrics"""


def _add_pretrain(commands: Any) -> None:
    pretrain = _command(
        commands,
        "pretrain",
        _pretrain,
        "start a run, or resume it if --out holds a complete checkpoint",
        takes_overrides=True,
        epilog=_KNOBS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pretrain.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml")
    pretrain.add_argument("--recipe", help="tiny, small, small_pp, base or large")
    pretrain.add_argument("--out", required=True, type=Path, metavar="RUN")
    pretrain.add_argument("--nproc", type=int, help="start this many ranks on this machine")
    stop = _command(commands, "stop", _stop, "ask a run to save and finish, without a requeue")
    stop.add_argument("run", type=Path, metavar="RUN")
    status = _command(commands, "status", _status, "what a run is doing, from its folder alone")
    status.add_argument("run", type=Path, metavar="RUN")
    status.add_argument("--json", action="store_true", help="one JSON document")
    config = _group(commands, "config", "look at configs")
    show = _command(
        config, "show", _config_show, "the resolved config as JSON", takes_overrides=True
    )
    show.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml")
    show.add_argument("--recipe")
    _command(config, "docs", _config_docs, "every knob with its default and meaning")


def _add_checkpoint(commands: Any) -> None:
    checkpoint = _group(commands, "checkpoint", "list, check, compare and export checkpoints")
    listing = _command(checkpoint, "list", _checkpoint_list, "the complete checkpoints of a run")
    listing.add_argument("run", type=Path, metavar="RUN")
    listing.add_argument("--json", action="store_true", help="one JSON document")
    verify = _command(
        checkpoint, "verify", _checkpoint_verify, "check every byte against the hashes"
    )
    verify.add_argument("checkpoint", type=Path, metavar="CKPT")
    diff = _command(
        checkpoint,
        "diff",
        _checkpoint_diff,
        "compare weights and moments bit by bit; exit 1 if they differ",
    )
    diff.add_argument("one", type=Path, metavar="CKPT")
    diff.add_argument("other", type=Path, metavar="CKPT")
    export = _command(checkpoint, "export", _checkpoint_export, "write the model in another format")
    export.add_argument("format", choices=("hf",))
    export.add_argument("checkpoint", type=Path, metavar="CKPT|RUN")
    export.add_argument("--out", required=True, type=Path)


def _add_finetune(commands: Any) -> None:
    tune = _command(
        commands, "finetune", _finetune, "fine-tune a pretrained model on a labelled task"
    )
    tune.add_argument("--model", required=True, type=Path, metavar="HF_DIR|RUN")
    for name in ("train", "dev"):
        tune.add_argument(
            f"--{name}", required=True, type=Path, metavar="FILE", help="TSV, CSV or JSONL"
        )
    tune.add_argument("--test", type=Path, metavar="FILE")
    tune.add_argument(
        "--task", help="a known task, which names the columns and metrics (sst2, cola, mrpc, ...)"
    )
    tune.add_argument("--text", metavar="COLUMN")
    tune.add_argument("--text-b", metavar="COLUMN", help="second segment of a pair")
    tune.add_argument("--label", metavar="COLUMN")
    tune.add_argument("--kind", choices=("classification", "regression"))
    tune.add_argument("--head", default="google", choices=("google", "hf"))
    for name, kind in (("epochs", int), ("lr", float), ("layer-decay", float)):
        tune.add_argument(f"--{name}", type=kind, help="default: by task and model size")
    tune.add_argument("--layer-decay-rule", default="fixed", choices=("fixed", "google"))
    tune.add_argument("--batch-size", type=int, default=32)
    tune.add_argument("--max-length", type=int, default=128)
    tune.add_argument("--seeds", default="1", help="how many, or a list such as 3,5,8")
    tune.add_argument(
        "--reinitialize",
        action="store_true",
        help="the same head on an untrained encoder: a baseline",
    )
    tune.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    tune.add_argument("--out", required=True, type=Path)
    predict = _command(
        commands, "predict", _predict, "label texts with a fine-tuned model, as JSONL"
    )
    predict.add_argument("--model", required=True, type=Path, metavar="DIR")
    predict.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="FILE",
        help="a text a line, or TSV, CSV, JSONL",
    )
    predict.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")


def _corpus_build(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.data.build import BuildOptions, build_corpus

    summary = build_corpus(
        BuildOptions(
            inputs=tuple(args.input),
            out=args.out,
            source=args.source,
            tokenizer=args.tokenizer,
            vocab_size=args.vocab_size,
            lowercase=not args.cased,
            text_field=args.field,
            held_out_share=args.held_out_share,
            max_quarantine_share=args.max_quarantine_share,
            num_workers=args.workers,
        )
    )
    print(
        f"{summary.folder}: {summary.documents:,} documents, {summary.tokens:,} tokens, vocabulary {summary.vocab_size:,}; "
        f"held out {summary.held_out_documents:,} documents; quarantined {summary.quarantined:,} records"
    )
    return 0


def _corpus_pack(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.data.frozen import freeze
    from electra_dist.data.packing import pack
    from electra_dist.data.store import Corpus, Packing

    folder = pack(args.corpus, args.length, args.mode, args.seed)
    corpus = Corpus.open(args.corpus)
    packing = Packing.open(corpus, args.length, args.mode)
    frozen = freeze(corpus, packing, args.mask_prob)
    print(f"{folder}: {packing.num_examples:,} examples of at most {args.length} tokens")
    if frozen is None:
        print(
            "no document is held out, so runs on this corpus are not evaluated (--held-out-share at build)"
        )
    return 0


def _corpus_verify(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.data.verify import verify_corpus

    problems = verify_corpus(args.corpus)
    print(
        "\n".join(problems) if problems else f"{args.corpus}: every file is what the manifest says"
    )
    return 1 if problems else 0


def _corpus_info(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.data.info import corpus_info, render_info

    info = corpus_info(args.corpus)
    print(json.dumps(info, indent=2) if args.json else render_info(info))
    return 0


def _vocab_train(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.data.vocab import train_vocab

    train_vocab(
        args.input, args.out, vocab_size=args.size, lowercase=not args.cased, source=args.source
    )
    print(args.out)
    return 0


def _pretrain(args: argparse.Namespace, overrides: list[str]) -> int:
    from electra_dist.config import files

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
    command = [
        sys.executable,
        "-m",
        "electra_dist",
        "pretrain",
        *words,
        "--out",
        str(args.out),
        *overrides,
    ]
    return run_ranks(command, args.nproc, without_launcher_variables(os.environ), args.out)


def _stop(args: argparse.Namespace, _: list[str]) -> int:
    if not (args.run / "config.json").is_file():
        raise UserError(f"{args.run} is not a run folder (it has no config.json)")
    (args.run / "STOP").touch()
    print(f"{args.run}: will save and finish at its next step")
    return 0


def _status(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.launch.run_folder import as_json, render, run_status

    status = run_status(args.run)
    print(json.dumps(as_json(status), indent=2) if args.json else render(status))
    return 0


def _config_show(args: argparse.Namespace, overrides: list[str]) -> int:
    from electra_dist.config import files

    print(files.to_json(files.load(args.config, overrides, recipe=args.recipe)), end="")
    return 0


def _config_docs(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.config.docs import knobs

    print(knobs())
    return 0


def _checkpoint_list(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.checkpoint.layout import list_checkpoints, read_manifest

    found = [(info, read_manifest(info.folder)) for info in list_checkpoints(args.run)]
    rows: list[dict[str, Any]] = [
        {"step": i.step, "folder": str(i.folder), "bytes": m.num_bytes, "shards": len(m.shards)}
        for i, m in found
    ]
    if args.json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(f"{args.run} holds no complete checkpoint")
    else:
        for row in rows:
            print(
                f"step {row['step']:>10,}  {row['bytes'] / 2**20:>10,.1f} MiB  {row['shards']:>4} shards  {row['folder']}"
            )
    return 0


def _checkpoint_verify(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.checkpoint.layout import CorruptCheckpoint, resolve
    from electra_dist.checkpoint.reshard import CheckpointReader

    folder = resolve(args.checkpoint).folder
    try:
        with CheckpointReader(folder) as reader:
            reader.verify()
    except CorruptCheckpoint as error:
        print(error)
        return 1
    print(f"{folder}: every block is what was written")
    return 0


def _checkpoint_diff(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.checkpoint.layout import CorruptCheckpoint, resolve
    from electra_dist.checkpoint.reshard import differences

    try:
        found = differences(resolve(args.one).folder, resolve(args.other).folder)
    except CorruptCheckpoint as error:
        raise UserError(f"{error}; compare checkpoints that verify") from None
    print("\n".join(found) if found else "identical: every weight and moment, bit for bit")
    return 1 if found else 0


def _checkpoint_export(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.train.export import export_hf

    print(export_hf(args.checkpoint, args.out))
    return 0


def _finetune(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.finetune.config import FinetuneConfig, parse_seeds
    from electra_dist.finetune.train import finetune
    from electra_dist.train.export import model_folder

    words = {k: v for k, v in vars(args).items() if k not in ("handler", "takes_overrides")}
    words |= {"model": model_folder(args.model), "seeds": parse_seeds(args.seeds)}
    finetune(FinetuneConfig(**words))
    return 0


def _predict(args: argparse.Namespace, _: list[str]) -> int:
    from electra_dist.serve.predict import predict_file

    predict_file(args.model, args.input, args.out)
    return 0
