"""The hosts of a run, and variables of its ranks, from the two files that DeepSpeed reads too."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from electra_dist.errors import UserError

LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>\d+)(\s.*)?")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*")
"""No word that ssh would take for an option, and nothing that a shell reads."""

VARIABLES_FILE = ".deepspeed_env"


@dataclass(frozen=True, kw_only=True)
class Host:
    """A line of a hostfile."""

    name: str
    """As ssh takes it: a name, an address, user@name."""
    slots: int
    """How many ranks it gets: its GPUs."""

    @property
    def address(self) -> str:
        """Without a user."""
        return self.name.rpartition("@")[2]


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """The hosts of lines such as `node0 slots=8`; empty lines and those that begin with # are none.

    Raises:
        UserError: no such file, no host in it, or a line of another form.
    """
    hosts: list[Host] = []
    for number, line in enumerate(_lines(path, "--hostfile"), 1):
        if not line or line.startswith("#"):
            continue
        found = LINE.fullmatch(line)
        if not found or not NAME.fullmatch(found["name"]) or not int(found["slots"]):
            raise UserError(
                f"line {number} of {path} is {line!r}; write a host and its number of ranks, as in "
                "`node0 slots=8`"
            )
        if any(host.name == found["name"] for host in hosts):
            raise UserError(f"line {number} of {path} names {found['name']} again; keep one line")
        hosts.append(Host(name=found["name"], slots=int(found["slots"])))
    if not hosts:
        raise UserError(f"--hostfile {path} names no host; add lines such as `node0 slots=8`")
    return tuple(hosts)


def variables_files(environ: Mapping[str, str]) -> list[Path]:
    """Where DeepSpeed looks: the home folder, then this one, which wins."""
    name = environ.get("DS_ENV_FILE") or VARIABLES_FILE
    return [path for path in (Path.home() / name, Path.cwd() / name) if path.is_file()]


def read_variables(paths: Sequence[Path]) -> dict[str, str]:
    """What stands in files of lines NAME=VALUE; later files win.

    Raises:
        UserError: a line of another form, of which DeepSpeed's launcher would die.
    """
    variables: dict[str, str] = {}
    for path in paths:
        for number, line in enumerate(_lines(path, VARIABLES_FILE), 1):
            name, equals, value = line.partition("=")
            if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
                # Not the line itself: `export WANDB_API_KEY=...` has a secret in it.
                raise UserError(
                    f"line {number} of {path} is no NAME=VALUE; DeepSpeed takes such lines only: "
                    "no export before the name, no empty lines and no comments"
                )
            variables[name.strip()] = value.strip()
    return variables


def _lines(path: Path, what: str) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"{what} {path} can't be read ({reason}); give a text file") from None
