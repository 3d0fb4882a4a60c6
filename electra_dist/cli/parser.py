"""How commands are declared, and how mistakes in their words are answered."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from electra_dist.errors import UserError

Handler = Callable[[argparse.Namespace, list[str]], int]
"""Takes the parsed words and the config overrides, returns the exit code."""


class Parser(argparse.ArgumentParser):
    """Answers a mistake as all others of the user are answered: one sentence, not the usage."""

    def error(self, message: str) -> NoReturn:
        """One sentence that says where help is."""
        raise UserError(f"{message}; see `{self.prog} --help`")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown words here, in the command's own parser, which knows where its help is."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def command(parent: Any, name: str, handler: Handler, **more: Any) -> argparse.ArgumentParser:
    """A command of `parent` that runs `handler`; the handler's docstring says what it does."""
    words = (handler.__doc__ or "").split("\n")[0].removesuffix(".")
    words = words[:1].lower() + words[1:]
    parser: argparse.ArgumentParser = parent.add_parser(
        name, help=words, description=words, allow_abbrev=False, **more
    )
    parser.set_defaults(handler=handler)
    return parser


def group(parent: Any, name: str, words: str) -> Any:
    """A word of `parent` that only holds commands."""
    parser = parent.add_parser(name, help=words, description=words, allow_abbrev=False)
    return parser.add_subparsers(required=True, metavar="COMMAND")
