"""``--section.field value`` on the command line: tyro parses, the errors are ours."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from typing import Any, get_origin, get_type_hints

from electra_dist.config.changes import flatten
from electra_dist.config.schema import RunConfig
from electra_dist.config.strict import nearest, type_in_words
from electra_dist.errors import UserError


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Parse all overrides at once with tyro.

    Where that fails, find the one to blame and say what it takes.
    """
    known = flatten(config)
    options: list[list[str]] = []
    for word in overrides:
        if word.startswith("--"):
            name = _option_name(word)
            if name not in known and name.replace(".no_", ".") not in known:
                raise UserError(f"unknown option {word}; {nearest(name, known, '--')}")
            options.append([word])
        elif options:
            options[-1].append(word)
        else:
            raise UserError(
                f"unexpected word {word!r}; overrides look like --batch.micro_batch_size 8"
            )
    parsed = _parse_with_tyro(config, overrides)
    if parsed is not None:
        return parsed
    for option in options:
        # An option may be impossible without the others (a batch size without its micro-batch):
        # only what cannot be parsed is to blame here.
        with contextlib.suppress(UserError):
            if _parse_with_tyro(config, option) is None:
                break
    else:
        raise UserError(
            f"the overrides {' '.join(overrides)!r} do not fit together; give each option once"
        )
    raise UserError(f"{' '.join(option)}: does not fit; {_remedy(option[0])}")


def _remedy(word: str) -> str:
    """What the option `word` takes, in words."""
    name = _option_name(word).replace(".no_", ".")
    if _field_type(name) is bool:
        return f"it takes no value: write --{name} or --{name.replace('.', '.no_')}"
    return f"the value must be {type_in_words(_field_type(name))}"


def _parse_with_tyro(config: RunConfig, words: Sequence[str]) -> RunConfig | None:
    """The config with `words` applied; None where tyro refuses them, its own panel unprinted."""
    import tyro

    if any(_option_name(word) == "data.blend" for word in words if word.startswith("--")):
        # To tyro a filled table is a section of its own; here the new table replaces it.
        config = replace(config, data=replace(config.data, blend={}))
    silence = io.StringIO()
    try:
        with contextlib.redirect_stderr(silence), contextlib.redirect_stdout(silence):
            return tyro.cli(RunConfig, default=config, args=list(words))
    except SystemExit:
        return None


def is_flag(word: str) -> bool:
    """Whether an override such as ``--metrics.no-tensorboard`` stands alone, without a value."""
    return _field_type(_option_name(word).replace(".no_", ".")) is bool


def takes_many(word: str) -> bool:
    """Whether an override such as ``--data.skips`` takes every word up to the next option."""
    return get_origin(_field_type(_option_name(word))) in (dict, tuple)


def _option_name(word: str) -> str:
    return word.split("=")[0].removeprefix("--").replace("-", "_")


def _field_type(name: str) -> Any:
    kind: Any = RunConfig
    for part in name.split("."):
        kind = (
            get_type_hints(kind).get(part.removeprefix("no_"), str) if is_dataclass(kind) else str
        )
    return kind
