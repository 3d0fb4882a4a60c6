"""The words that a user types; what they do is in `commands`. No heavy import: help is instant."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from electra_dist import commands
from electra_dist.cli_build import add_build_words, add_vocab_report_words, add_vocab_train_words
from electra_dist.errors import UserError

Handler = Callable[[argparse.Namespace, list[str]], int]

WITH_OVERRIDES = (["pretrain"], ["trace"], ["config", "show"], ["corpus", "audit"])
"""Commands that take any knob of the config as `--section.field value`."""

UNUSABLE_PLACE = {
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
}
"""What only the user can put right: a path that can't be written, a full disk."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 2 the user's mistake (one sentence on stderr), 75 stopped on request, 1 anything else.
    """
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()  # a closed pipe is found here, not when the interpreter ends
    except UserError as error:
        if _is_leader():  # one sentence, not one a rank
            print(f"electra-dist: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `electra-dist ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in UNUSABLE_PLACE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"electra-dist: {where}{error.strerror}; make room there, or give another path",
            file=sys.stderr,
        )
        return 2


def _run(words: list[str]) -> int:
    overrides: list[str] = []
    if words[:1] in WITH_OVERRIDES or words[:2] in WITH_OVERRIDES:
        words, overrides = split_overrides(words)
    args = make_parser().parse_args(words)
    handler: Handler = args.handler
    del args.handler
    return handler(args, overrides)


def _is_leader() -> bool:
    from electra_dist.runtime.world import World

    try:
        return World.from_environment(os.environ).is_leader
    except UserError:  # the mistake is in the variables themselves
        return True


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take `--section.field value` and `--seed value` out: tyro reads these, argparse the rest."""
    from electra_dist.config.files import is_flag, takes_many

    left = list(words)
    plain: list[str] = []
    overrides: list[str] = []
    while left:
        word = left.pop(0)
        name, equals, _ = word.partition("=")
        is_override = name == "--seed" or (name.startswith("--") and "." in name)
        (overrides if is_override else plain).append(word)
        if not is_override or equals or not left or left[0].startswith("--"):
            continue
        if takes_many(word):
            while left and not left[0].startswith("--"):
                overrides.append(left.pop(0))
            continue
        # A flag takes no value; `true` behind one is for tyro to refuse, and no file to read.
        if not is_flag(word) or left[0].lower() in ("true", "false"):
            overrides.append(left.pop(0))
    return plain, overrides


class _Parser(argparse.ArgumentParser):
    """Answers a mistake as all others of the user are answered: one sentence, not the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown words here, in the command's own parser, which knows where its help is."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def make_parser() -> argparse.ArgumentParser:
    """All commands and their words."""
    parser = _Parser(
        prog="electra-dist",
        description="Pretrain, resume, export and fine-tune ELECTRA on a cluster.",
        allow_abbrev=False,
    )
    parent = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_corpus(parent)
    _add_vocab(parent)
    _add_pretrain(parent)
    _add_checkpoint(parent)
    _add_finetune(parent)
    return parser


def _command(parent: Any, name: str, handler: Handler, **more: Any) -> argparse.ArgumentParser:
    """A command of `parent` that runs `handler`; the handler's docstring says what it does."""
    words = (handler.__doc__ or "").split("\n")[0].removesuffix(".")
    words = words[:1].lower() + words[1:]
    parser: argparse.ArgumentParser = parent.add_parser(
        name, help=words, description=words, allow_abbrev=False, **more
    )
    parser.set_defaults(handler=handler)
    return parser


def _group(parent: Any, name: str, words: str) -> Any:
    group = parent.add_parser(name, help=words, description=words, allow_abbrev=False)
    return group.add_subparsers(required=True, metavar="COMMAND")


def _add_corpus(parent: Any) -> None:
    corpus = _group(parent, "corpus", "turn text into a token store, pack it, look at it")
    build = _command(corpus, "build", commands.corpus_build)
    add_build_words(build)
    pack = _command(corpus, "pack", commands.corpus_pack)
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
    verify = _command(corpus, "verify", commands.corpus_verify)
    verify.add_argument("corpus", type=Path, metavar="CORPUS")
    info = _command(corpus, "info", commands.corpus_info)
    info.add_argument("corpus", type=Path, metavar="CORPUS")
    info.add_argument("--json", action="store_true", help="one JSON document")
    info.add_argument("--plot", type=Path, metavar="PNG", help="the same as a figure")
    audit = _command(corpus, "audit", commands.corpus_audit)
    audit.add_argument("run", type=Path, metavar="RUN")
    audit.add_argument(
        "--steps", metavar="A:B", help="make only these checksums again (default: all)"
    )
    audit.add_argument("--json", action="store_true", help="one JSON document")


def _add_vocab(parent: Any) -> None:
    vocab = _group(parent, "vocab", "train a vocabulary, measure how one fits a text")
    add_vocab_train_words(_command(vocab, "train", commands.vocab_train))
    add_vocab_report_words(_command(vocab, "report", commands.vocab_report))


_KNOBS = """common knobs (--section.field value; `electra-dist config docs` lists all):
  --data.corpus CORPUS              --data.sequence_length 128
  --data.blend CORPUS 3 CORPUS 1    --data.num_lanes 1              --data.skips FIRST LAST ...
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


def _add_pretrain(parent: Any) -> None:
    pretrain = _command(
        parent,
        "pretrain",
        commands.pretrain,
        epilog=_KNOBS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pretrain.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml")
    pretrain.add_argument("--recipe", help="tiny, small, small_pp, base or large")
    pretrain.add_argument("--out", required=True, type=Path, metavar="RUN")
    pretrain.add_argument("--nproc", type=int, help="start this many ranks on this machine")
    trace = _command(parent, "trace", commands.trace)
    trace.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml|RUN/config.json")
    trace.add_argument("--recipe", help="as in pretrain; so are --section.field value")
    trace.add_argument(
        "--steps", required=True, metavar="A:B", help="updates A to B - 1, counted from 0"
    )
    trace.add_argument("--world-size", type=int, default=1, metavar="W", help="ranks (default 1)")
    trace.add_argument(
        "--ranks-per-node", type=int, metavar="N", help="for data.num_lanes > 1 (default: W)"
    )
    trace.add_argument("--json", action="store_true", help="one JSON document, nothing cut")
    stop = _command(parent, "stop", commands.stop)
    stop.add_argument("run", type=Path, metavar="RUN")
    status = _command(parent, "status", commands.status)
    status.add_argument("run", type=Path, metavar="RUN")
    status.add_argument("--json", action="store_true", help="one JSON document")
    config = _group(parent, "config", "look at configs")
    show = _command(config, "show", commands.config_show)
    show.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml")
    show.add_argument("--recipe")
    _command(config, "docs", commands.config_docs)


def _add_checkpoint(parent: Any) -> None:
    checkpoint = _group(parent, "checkpoint", "list, check, compare and export checkpoints")
    listing = _command(checkpoint, "list", commands.checkpoint_list)
    listing.add_argument("run", type=Path, metavar="RUN")
    listing.add_argument("--json", action="store_true", help="one JSON document")
    verify = _command(checkpoint, "verify", commands.checkpoint_verify)
    verify.add_argument("checkpoint", type=Path, metavar="CKPT")
    verify.add_argument(
        "--repair", action="store_true", help="rebuild a lost or damaged shard from parity.xor"
    )
    diff = _command(
        checkpoint,
        "diff",
        commands.checkpoint_diff,
    )
    diff.add_argument("one", type=Path, metavar="CKPT")
    diff.add_argument("other", type=Path, metavar="CKPT")
    export = _command(checkpoint, "export", commands.checkpoint_export)
    export.add_argument("format", choices=("hf",))
    export.add_argument("checkpoint", type=Path, metavar="CKPT|RUN")
    export.add_argument("--out", required=True, type=Path)


def _add_finetune(parent: Any) -> None:
    tune = _command(parent, "finetune", commands.run_finetune)
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
    predict = _command(parent, "predict", commands.run_predict)
    predict.add_argument("--model", required=True, type=Path, metavar="DIR")
    predict.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="FILE",
        help="a text a line, or TSV, CSV, JSONL",
    )
    predict.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
