"""Values held against the types of a config's dataclasses, strictly, with errors in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from electra_dist.errors import UserError


def strict_values(
    cls: type, values: Mapping[str, Any], where: str, prefix: str = ""
) -> dict[str, Any]:
    """A copy of `values` for the dataclass `cls`, whole numbers of float fields made floats.

    Raises:
        UserError: a key is unknown, or a value has another type than its field.
    """
    hints = get_type_hints(cls)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{where}: unknown key {prefix}{key}; {nearest(key, hints, prefix)}")
        kind = hints[key]
        if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
            checked[key] = strict_values(kind, value, where, f"{prefix}{key}.")
            continue
        checked[key] = _fitted(kind, value)
        if not _is_of(kind, checked[key]):
            raise UserError(
                f"{where}: {prefix}{key} = {value!r} is not allowed; it must be "
                f"{type_in_words(kind)}"
            )
    return checked


def _fitted(kind: Any, value: Any) -> Any:
    """Whole numbers of float fields as floats, lists of tuple fields as tuples."""
    if kind in (float, float | None) and type(value) is int:
        return float(value)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_fitted(get_args(kind)[0], one) for one in value)
    return value


def _is_of(kind: Any, value: Any) -> bool:
    """Whether `value` has exactly the type `kind`: to Python, true is 1 and 1.0 is 1."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in args)
    if origin is dict:
        return isinstance(value, Mapping) and all(
            _is_of(args[0], key) and _is_of(args[1], one) for key, one in value.items()
        )
    if origin is tuple:
        if type(value) is not tuple:
            return False
        kinds = [args[0]] * len(value) if args[1:] == (...,) else args
        return len(kinds) == len(value) and all(map(_is_of, kinds, value))
    if get_args(kind):
        return any(_is_of(arg, value) for arg in get_args(kind))
    return type(value) is kind


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """What a mistyped name was meant to be, or all that there are, in words."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(sorted(known))}"


def type_in_words(kind: Any) -> str:
    """`one of 0, 1, 2, 3` for a Literal, `int or None` for a union, the plain name else."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(kind))
    if get_origin(kind) is dict:
        return "a table of {} = {}".format(*map(type_in_words, get_args(kind)))
    if get_origin(kind) is tuple and get_args(kind)[-1] is ...:
        return f"a list of {type_in_words(get_args(kind)[0])}"
    if get_origin(kind) is tuple:
        return f"[{', '.join(map(type_in_words, get_args(kind)))}]"
    if get_args(kind):
        return " or ".join(type_in_words(arg) for arg in get_args(kind))
    if is_dataclass(kind):
        return "a section"
    return "None" if kind is type(None) else str(getattr(kind, "__name__", kind))
