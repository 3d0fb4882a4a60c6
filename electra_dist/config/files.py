"""Configs in and out: TOML and ``--section.field value`` in, exact JSON out.

Reading is strict: an unknown key is an error that names the nearest known one. Order of strength:
the recipe, then the TOML file, then the command line.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dacite

from electra_dist.config.overrides import apply_overrides
from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import RunConfig
from electra_dist.config.strict import strict_values
from electra_dist.errors import UserError


def load(
    path: str | Path | None, overrides: Sequence[str] = (), *, recipe: str | None = None
) -> RunConfig:
    """Read a config and apply overrides such as ``["--batch.micro-batch-size", "8"]``.

    Args:
        path: TOML file, or the config.json of a run; None starts from the recipe alone.
        overrides: command-line words; ``-`` and ``_`` are alike.
        recipe: stronger than the file's own ``recipe`` key.

    Raises:
        UserError: the file is missing or not TOML, a key is unknown, a type or a value is wrong.
    """
    if path is not None and Path(path).suffix == ".json":
        if recipe is not None:
            raise UserError(
                f"{path} is a whole config, so --recipe {recipe} would change nothing of it; "
                "leave --recipe out, or give a TOML file"
            )
        config = read_json(Path(path))
        return apply_overrides(config, overrides) if overrides else config
    values = _read_toml(Path(path)) if path is not None else {}
    name = recipe or values.pop("recipe", None) or "small"
    values.pop("recipe", None)
    if not isinstance(name, str) or name not in RECIPES:
        raise UserError(f"recipe = {name!r} is unknown; choose one of {', '.join(RECIPES)}")
    where = str(path) if path is not None else "config"
    config = from_dict(_merged(asdict(RECIPES[name]()), values, where), where)
    return apply_overrides(config, overrides) if overrides else config


def config_of(run: Path, path: Path | None, recipe: str | None) -> Path | None:
    """The file to read for RUN: the one given, or, told nothing else, its own config.json.

    So a resume needs no other words than RUN. None: there is none yet.
    """
    settled = run / "config.json"
    return settled if path is None and recipe is None and settled.is_file() else path


def config_words(path: Path | None, recipe: str | None) -> list[str]:
    """What `pretrain` is told to read the same config, on the command line of another process."""
    return [*([str(path)] if path else []), *(["--recipe", recipe] if recipe else [])]


def from_dict(values: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Build the config from nested dictionaries, strictly; `where` names the source in errors."""
    checked = strict_values(RunConfig, values, where)
    return dacite.from_dict(RunConfig, checked, dacite.Config(strict=True))


def read_json(path: Path) -> RunConfig:
    """Read RUN/config.json back, exactly as `to_json` wrote it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as a config ({error}); is this a run folder?"
        ) from None
    return from_dict(values, str(path))


def to_json(config: RunConfig) -> str:
    """The config as JSON text that `from_dict` reads back to an equal value."""
    return json.dumps(asdict(config), indent=2) + "\n"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise UserError(
            f"config file {path} does not exist; give a TOML file or --recipe NAME"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable TOML file: {error}") from None


def _merged(base: dict[str, Any], top: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`top` over `base`, one level of sections deep; a section given as a plain value is wrong."""
    merged = dict(base)
    for key, value in top.items():
        if isinstance(base.get(key), dict):
            if not isinstance(value, Mapping):
                raise UserError(
                    f"{where}: {key} = {value!r} must be a section; "
                    f"write [{key}] and its fields below"
                )
            merged[key] = {**base[key], **value}
        else:
            merged[key] = value
    return merged
