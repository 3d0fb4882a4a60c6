"""`electra-dist`: from words to a command, from an error to one sentence and an exit code."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from electra_dist.cli.checkpoint import add_checkpoint
from electra_dist.cli.corpus import add_corpus, add_vocab
from electra_dist.cli.downstream import add_downstream
from electra_dist.cli.parser import Handler, Parser
from electra_dist.cli.plan import add_plan
from electra_dist.cli.run import add_run
from electra_dist.cli.submit import add_submit
from electra_dist.config import variables
from electra_dist.errors import UserError

WITH_OVERRIDES = (
    ["pretrain"],
    ["plan"],
    ["trace"],
    ["config", "show"],
    ["corpus", "audit"],
    *(["submit", way] for way in ("slurm", "submitit", "deepspeed", "mpi", "torchrun")),
)
"""Commands that take any knob of the config as `--section.field value`."""

UNUSABLE_PLACE = {
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
}
"""What only the user can put right: a path that can't be written, a full disk."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 2 the user's mistake (one sentence on stderr), 75 stopped on request, 130 Ctrl-C, 1
    anything else.
    """
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()  # a closed pipe is found here, not when the interpreter ends
    except UserError as error:
        if _is_leader():  # one sentence, not one a rank
            print(f"electra-dist: {error}", file=sys.stderr)
            _tell_launcher(error)
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


class _Version(argparse.Action):
    """Looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib import metadata

        print(f"electra-dist {metadata.version('electra_dist')}")
        parser.exit()


def _tell_launcher(error: UserError) -> None:
    path = os.environ.get(variables.MISTAKE_FILE)
    if path:
        with suppress(OSError):
            Path(path).write_text(f"{error}\n", encoding="utf-8")


def _is_leader() -> bool:
    from electra_dist.runtime.world import World

    try:
        return World.from_environment(os.environ).is_leader
    except UserError:  # the mistake is in the variables themselves
        return True


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take `--section.field value` and `--seed value` out: tyro reads these, argparse the rest."""
    from electra_dist.config.overrides import is_flag, takes_many

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


def make_parser() -> argparse.ArgumentParser:
    """All commands and their words."""
    parser = Parser(
        prog="electra-dist",
        description="Pretrain, resume, export and fine-tune ELECTRA on a cluster.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,  # it is no word of the commands: finetune takes all of its own
        help="print the version and exit",
    )
    parent = parser.add_subparsers(required=True, metavar="COMMAND")
    add_corpus(parent)
    add_vocab(parent)
    add_run(parent)
    add_plan(parent)
    add_submit(parent)
    add_checkpoint(parent)
    add_downstream(parent)
    return parser
