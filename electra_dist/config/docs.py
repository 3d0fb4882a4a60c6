"""Every knob in words: its name, type, default and the sentence under the field in schema.py."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from electra_dist.config import schema
from electra_dist.config.strict import type_in_words


def knobs() -> str:
    """One block a section, one entry a field."""
    lines = []
    for section in fields(schema.RunConfig):
        kind = get_type_hints(schema.RunConfig)[section.name]
        if is_dataclass(kind) and isinstance(kind, type):
            lines += ["", f"[{section.name}]  {inspect.getdoc(kind)}"]
            lines += _entries(kind, f"{section.name}.", kind())
    return "\n".join([*_entries(schema.RunConfig, "", schema.RunConfig(), plain_only=True), *lines])


def field_docs(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass, from its source."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = str(following.value.value)
    return docs


def _entries(cls: type, prefix: str, default: Any, *, plain_only: bool = False) -> list[str]:
    docs, hints = field_docs(cls), get_type_hints(cls)
    return [
        f"  --{prefix}{name}  ({type_in_words(hints[name])}; {getattr(default, name)!r})\n"
        f"      {docs[name]}"
        for name in hints
        if not (plain_only and is_dataclass(hints[name]))
    ]
