"""How Slurm writes lists of hosts, and of the tasks of each host, and how it reads times."""

import re
from itertools import product

from electra_dist.errors import UserError

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)


def slurm_minutes(text: str, name: str = "--time") -> int | None:
    """Minutes of a --time, rounded up: 90, 90:00, 1:30:00, 2-12, 2-12:30, 2-12:30:00.

    None: UNLIMITED or INFINITE.

    Raises:
        UserError: the text, given as `name`, is none of these.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return None
    found = _TIME.fullmatch(text)
    parts = [int(part) for part in found.groups()[1:] if part is not None] if found else []
    if not found or not any([*parts, int(found["days"] or 0)]):
        raise UserError(
            f"{name} {text} is no time limit; give minutes (90), H:MM:SS (1:30:00), D-HH:MM:SS "
            "(2-12:00:00) or UNLIMITED"
        )
    # Without days the first of one or two numbers is of minutes, else of hours.
    if found["days"] is None and len(parts) < 3:
        parts.insert(0, 0)
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    whole = 60 * (24 * int(found["days"] or 0) + hours) + minutes
    return whole + (1 if seconds else 0)


def expand_tasks_per_node(text: str, name: str = "SLURM_TASKS_PER_NODE") -> list[int]:
    """Slurm's run-length list of tasks: "2(x3),1" is [2, 2, 2, 1].

    Raises:
        UserError: the text, found in the variable `name`, is not of that form.
    """
    counts: list[int] = []
    for part in text.split(","):
        count, _, repeat = part.partition("(x")
        repeat = repeat.removesuffix(")") if repeat else "1"
        if not (count.isdigit() and repeat.isdigit()):
            raise UserError(f"{name} is {text!r}, but Slurm writes it like 2(x3),1: unset it.")
        counts.extend([int(count)] * int(repeat))
    return counts


def expand_hostlist(text: str) -> list[str]:
    """Slurm's compressed list of hosts: "gpu[08-10,12],login" is gpu08 gpu09 gpu10 gpu12 login.

    Several brackets in one name ("r[1-2]n[1-2]") multiply, the last one running fastest.

    Raises:
        UserError: brackets do not match, or a range is not of numbers.
    """
    hosts: list[str] = []
    for name in _split_outside_brackets(text):
        pieces: list[list[str]] = []
        rest = name
        while rest:
            prefix, bracket, rest = rest.partition("[")
            pieces.append([prefix])
            if bracket:
                inside, closing, rest = rest.partition("]")
                if not closing:
                    raise _bad_hostlist(text)
                pieces.append([number for r in inside.split(",") for number in _range(r, text)])
        hosts.extend("".join(choice) for choice in product(*pieces))
    if not all(hosts) or not hosts:
        raise _bad_hostlist(text)
    return hosts


def _split_outside_brackets(text: str) -> list[str]:
    names, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if depth not in (0, 1):
            raise _bad_hostlist(text)
        if character == "," and depth == 0:
            names.append("")
        else:
            names[-1] += character
    return names


def _range(text: str, hostlist: str) -> list[str]:
    first, dash, last = text.partition("-")
    last = last if dash else first
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise _bad_hostlist(hostlist)
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def _bad_hostlist(text: str) -> UserError:
    return UserError(
        f"{text!r} is not a Slurm host list such as gpu[01-04,07]: "
        "export MASTER_ADDR with the host name of rank 0, and correct SLURM_STEP_NODELIST."
    )
