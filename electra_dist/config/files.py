"""Configs in and out: TOML and ``--section.field value`` in, exact JSON out, differences in words.

Reading is strict: an unknown key is an error that names the nearest known one. Order of strength:
the recipe, then the TOML file, then the command line.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import dacite

from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import RunConfig
from electra_dist.errors import UserError

# What a resumed run may change; everything else decides which numbers are computed.
RESUMABLE_FIELDS = (
    "recipe",
    "model.pad_vocab_to_multiple_of",  # rows of zeros that no checkpoint holds
    "data.corpus",
    "data.blend",  # folders may move; their content and weights are in the corpus fingerprint
    "data.prefetch_steps",
    "data.cache_dir",
    "data.cache_bytes",
    "schedule.stop_step",
    *(
        f"engine.{name}"  # all but compile, after which numbers are rounded otherwise
        for name in (
            *("kind", "zero_stage", "deepspeed_config", "precision", "initial_loss_scale"),
            *("loss_scale_window", "threads_per_rank", "timeout_seconds", "deterministic"),
            "activation_checkpointing",
        )
    ),
    "checkpoint",
    "resilience",
    "metrics",
)


# What a fork (--resume-from) may change beyond that: the rows, their order and the shapes stay.
FORKABLE_FIELDS = (
    "optim",
    "schedule",
    "objective.gen_weight",
    "objective.disc_weight",
    "objective.temperature",
    "objective.temperature_end",
    "objective.temperature_anneal_steps",
    "objective.disallow_correct",
    "objective.sampling_dropout",
    "model.hidden_dropout",
    "model.attention_dropout",
)


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
        return _apply_overrides(config, overrides) if overrides else config
    values = _read_toml(Path(path)) if path is not None else {}
    name = recipe or values.pop("recipe", None) or "small"
    values.pop("recipe", None)
    if not isinstance(name, str) or name not in RECIPES:
        raise UserError(f"recipe = {name!r} is unknown; choose one of {', '.join(RECIPES)}")
    where = str(path) if path is not None else "config"
    config = from_dict(_merged(asdict(RECIPES[name]()), values, where), where)
    return _apply_overrides(config, overrides) if overrides else config


def from_dict(values: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Build the config from nested dictionaries, strictly; `where` names the source in errors."""
    checked = strict_values(RunConfig, values, where)
    return dacite.from_dict(RunConfig, checked, dacite.Config(strict=True))


def read_json(path: Path) -> RunConfig:
    """Read RUN/config.json back, exactly as `write_json` wrote it."""
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


def fingerprint(config: RunConfig) -> str:
    """Hash of the fields that decide which numbers a run computes.

    What a resume may change is left out, and so is what has its default: a knob that a later
    version adds does not change the fingerprint of older runs.
    """
    defaults = flatten(RunConfig())
    flat = {
        name: value
        for name, value in flatten(config).items()
        if not _is_resumable(name) and value != defaults[name]
    }
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


def flatten(config: RunConfig) -> dict[str, Any]:
    """All fields as ``{"batch.micro_batch_size": 32, ...}``."""
    flat: dict[str, Any] = {}
    for name, value in asdict(config).items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            flat[name] = value
    return flat


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """What differs, in words: one ``batch.micro_batch_size: 32 -> 16`` a field."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before[name]!r} -> {after[name]!r}"
        for name in before
        if before[name] != after[name]
    ]


def forbidden_differences(old: RunConfig, new: RunConfig) -> list[str]:
    """The differences that a resume must refuse."""
    return [words for words in differences(old, new) if not _is_resumable(words.split(":")[0])]


def unforkable_differences(old: RunConfig, new: RunConfig) -> list[str]:
    """The differences that a fork must refuse."""
    return [
        words
        for words in forbidden_differences(old, new)
        if not {(name := words.split(":")[0]), name.split(".")[0]} & {*FORKABLE_FIELDS}
    ]


def _is_resumable(name: str) -> bool:
    return name in RESUMABLE_FIELDS or name.split(".")[0] in RESUMABLE_FIELDS


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
            raise UserError(f"{where}: unknown key {prefix}{key}; {_nearest(key, hints, prefix)}")
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


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
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


def _apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Parse all overrides at once with tyro.

    Where that fails, find the one to blame and say what it takes.
    """
    known = flatten(config)
    options: list[list[str]] = []
    for word in overrides:
        if word.startswith("--"):
            name = _option_name(word)
            if name not in known and name.replace(".no_", ".") not in known:
                raise UserError(f"unknown option {word}; {_nearest(name, known, '--')}")
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
