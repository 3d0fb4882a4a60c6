"""What `corpus build` may be told: sources, tokenizer, limits; also from a TOML file of sources."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from electra_dist.data import near_duplicates, sources
from electra_dist.errors import UserError

DEDUPS = ("exact", "near", "none")
MAX_WEIGHT = 100.0


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One source of a corpus. Checked at construction (UserError)."""

    inputs: tuple[str, ...]
    """Files, folders, globs, addresses; order counts."""
    kind: str = "text"
    """A name in `SOURCES`."""
    options: sources.SourceOptions = field(default_factory=sources.SourceOptions)
    """Field names, splitter, limits."""
    weight: float = 1.0
    """How often each document stands in the corpus: 2 = twice, 0.5 = half of the documents, chosen
    by hash. Held-out documents stand once."""
    license: str | None = None
    """Recorded in the manifest as it is given."""

    def __post_init__(self) -> None:
        sources.source_named(self.kind)
        if not (math.isfinite(self.weight) and 0 < self.weight <= MAX_WEIGHT):
            raise UserError(
                f"weight {self.weight:g} is out of range: use more than 0 and at most"
                f" {MAX_WEIGHT:g}"
            )


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a build may be told. Checked at construction (UserError)."""

    sources: tuple[SourceSpec, ...]
    """At least one; order counts."""
    out: Path
    """The corpus folder to make; must not exist."""
    tokenizer: str = "train"
    """A tokenizer.json, a WordPiece vocab.txt, or `train`: train a WordPiece on the input."""
    vocab_size: int = 8192
    """Entries at most, for `tokenizer = train`."""
    vocab_sample_bytes: int = 256 << 20
    """Input that `tokenizer = train` looks at, about, spread evenly: training holds its words."""
    lowercase: bool = True
    """For `train` and a vocab.txt."""
    strip_accents: bool | None = None
    """For `train` and a vocab.txt; None follows lowercase."""
    dedup: str = "exact"
    """`exact`: of documents with the same cleaned text the first is kept. `near`: also of documents
    that share most of their words. `none`: all are."""
    near_threshold: float = 0.8
    """Jaccard similarity of runs of 5 tokens from which documents are near duplicates."""
    held_out_share: float = 0.005
    """Share of the documents, chosen by hash, that is never trained on."""
    max_quarantine_share: float = 0.01
    """More bad records than this share of all records fail the build."""
    num_workers: int = 1
    """Encoding processes; 1 encodes in this one."""
    shard_tokens: int = 64 << 20
    """Tokens a shard at most (a longer document has a shard for itself)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        if not self.sources:
            raise UserError("there is no source: give --input, or --sources FILE.toml")
        if self.dedup not in DEDUPS:
            raise UserError(f"--dedup {self.dedup!r} is unknown: use one of {', '.join(DEDUPS)}")
        if self.dedup == "near":
            near_duplicates.require_library()
        for name in ("held_out_share", "max_quarantine_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"{name} {getattr(self, name)} is out of range: use 0 or more and less than 1"
                )
        if not 0 < self.near_threshold <= 1:
            raise UserError(
                f"near_threshold {self.near_threshold} is out of range:"
                " use more than 0 and at most 1; 0.8 is usual"
            )
        for name in ("num_workers", "shard_tokens", "vocab_sample_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is out of range: use 1 or more")


_LIMITS = ("max_document_bytes", "max_sentence_bytes")
_OPTION_WORDS = {
    "field": "text_field",
    **{name: name for name in ("splitter", "hf_name", "hf_split", *_LIMITS)},
}
"""Words of the command line that are fields of `SourceOptions`."""


def options_from_words(words: Mapping[str, Any]) -> BuildOptions:
    """The options that the words of `corpus build` (cli_build.py) ask for; None is not given.

    Raises UserError.
    """
    given = {name: value for name, value in words.items() if value is not None}
    options = {field: given[word] for word, field in _OPTION_WORDS.items() if word in given}
    if "sources" in given:
        limits = {name: value for name, value in options.items() if name in _LIMITS}
        for word in ("input", "source", "weight", "license", *_OPTION_WORDS):
            if word in given and word not in _LIMITS:
                raise UserError(
                    f"--{word.replace('_', '-')} and --sources exclude each other:"
                    f" write it into {given['sources']}"
                )
        specs = read_sources(given["sources"], limits)
    elif "input" in given:
        spec = {"kind": given.get("source"), "weight": given.get("weight")}
        specs = (
            SourceSpec(
                inputs=tuple(given["input"]),
                options=sources.SourceOptions(**options),
                license=given.get("license"),
                **{name: value for name, value in spec.items() if value is not None},
            ),
        )
    else:
        specs = ()
    return BuildOptions(
        sources=specs,
        out=given["out"],
        tokenizer=given["tokenizer"],
        vocab_size=given["vocab_size"],
        vocab_sample_bytes=given["vocab_sample_bytes"],
        lowercase=not given["cased"],
        strip_accents=given.get("strip_accents"),
        dedup=given["dedup"],
        near_threshold=given["near_threshold"],
        held_out_share=given["held_out_share"],
        max_quarantine_share=given["max_quarantine_share"],
        num_workers=given["workers"],
        shard_tokens=given["shard_tokens"],
    )


def read_sources(path: str | Path, limits: Mapping[str, int]) -> tuple[SourceSpec, ...]:
    """The `[[source]]` tables of a TOML file.

    Keys of a table: `input` (a path or a list), `kind`, `weight`, `license`, `field` and what else
    `SourceOptions` knows; `limits` are options that a table may overrule. Raises UserError naming
    the table and key that is wrong.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise UserError(f"--sources {path} does not exist: check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--sources {path} is not a readable TOML file: {error}") from None
    tables = content.pop("source", [])
    if content or not isinstance(tables, list) or not tables:
        raise UserError(f"--sources {path} must hold [[source]] tables and nothing else")
    return tuple(
        _source_spec(table, f"--sources {path}, source {number}", limits)
        for number, table in enumerate(tables, 1)
    )


def _source_spec(table: Mapping[str, Any], where: str, limits: Mapping[str, int]) -> SourceSpec:
    words = dict(table)
    options = {option.name for option in fields(sources.SourceOptions)}
    if "field" in words:
        words["text_field"] = words.pop("field")
    known = {"input", "kind", "weight", "license", *options}
    if unknown := sorted(words.keys() - known):
        raise UserError(
            f"{where}: unknown key {unknown[0]!r}; use some of"
            f" {', '.join(sorted((known - {'text_field'}) | {'field'}))}"
        )
    inputs = words.pop("input", None)
    inputs = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(inputs, list) or not all(isinstance(word, str) for word in inputs):
        raise UserError(f"{where}: input must be a path or a list of paths")
    for name, value in words.items():
        kind, words_for_kind = (
            (float | int, "a number")
            if name == "weight"
            else (int, "a whole number")
            if name in _LIMITS
            else (str, "a string")
        )
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{where}: {name} = {value!r} must be {words_for_kind}")
    own = {name: words.pop(name) for name in tuple(words) if name in options}
    try:
        return SourceSpec(
            inputs=tuple(inputs), options=sources.SourceOptions(**{**limits, **own}), **words
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
