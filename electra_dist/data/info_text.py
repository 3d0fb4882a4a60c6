"""What `corpus_info` found, as lines for people."""

from collections.abc import Iterator
from typing import Any

from electra_dist.data.info import RARE

_BAR_CHARACTERS = 40


def render_info(info: dict[str, Any]) -> str:
    """A few aligned lines, with a bar chart of the document lengths of the train split."""
    rows = [*_head(info), *_splits(info), *_vocabulary(info)]
    rows += [*_sources(info), *_left_out(info), *_packings(info)]
    return "\n".join(f"{name:<12} {text}".rstrip() for name, text in rows)


def _head(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    tokenizer = info["tokenizer"]
    casing = "lower-cased" if tokenizer["lowercase"] else "cased"
    size = f"{info['bytes'] / 1e6:,.1f} MB"
    yield "corpus", f"{info['folder']} ({size}), fingerprint {info['fingerprint']}"
    vocabulary = f"{info['vocab_size']:,} ids as {info['dtype']}"
    yield "tokenizer", f"{tokenizer['kind']}, {casing}, {vocabulary}"


def _splits(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for split, entry in info["splits"].items():
        counts = (f"{entry[name]:,} {name}" for name in ("documents", "sentences", "tokens"))
        yield split, ", ".join(counts)
        if entry["documents"]:
            mean, median = entry["mean_document_tokens"], entry["median_document_tokens"]
            yield "", f"document length: mean {mean:,.1f}, median {median:,.1f} tokens"
        if split == "train":
            yield from (("", line) for line in _length_chart(entry["document_lengths"]))


def _length_chart(bins: list[dict[str, int]]) -> Iterator[str]:
    """A line for each power of two: range, documents, a bar of '#' (pure ASCII: logs, pipes)."""
    ranges = [f"{one['min_tokens']:,} to {one['max_tokens']:,}" for one in bins]
    width = max(map(len, ranges), default=0)
    most = max((one["documents"] for one in bins), default=1)
    for name, one in zip(ranges, bins, strict=True):
        bar = "#" * -(-one["documents"] * _BAR_CHARACTERS // most)
        yield f"{name:>{width}} tokens {one['documents']:>11,} {bar}"


def _vocabulary(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "unknown", f"{100 * info['unknown_token_share']:.3f} % of the tokens are unknown"
    use = info["vocabulary"]
    rarely = f"{use['seen_rarely']:,} less than {RARE} times"
    yield "vocabulary", f"{use['never_seen']:,} ids never seen in train, {rarely}"
    common = (f"{one['token']} {100 * one['share']:.1f} %" for one in use["commonest"])
    yield "commonest", "  ".join(common)


def _sources(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for source in info["sources"]:
        size = "unknown size" if source["bytes"] is None else f"{source['bytes']:,} bytes"
        files = f"{source['files']:,} file{'s' if source['files'] != 1 else ''}"
        text = f"{files}, {size}, {source['documents']:,} documents"
        if source["weight"] not in (None, 1):
            text += f", weight {source['weight']:g}"
        yield "source", f"{source['kind']} {source['path']}: {text}"
    named = (
        f"{one['license'] or 'not given'} ({one['documents']:,} documents)"
        for one in info["licenses"]
    )
    yield "licences", ", ".join(named)


def _left_out(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    exact, near = info["duplicates"]["exact"], info["duplicates"]["near"]
    if exact is not None:
        yield "duplicates", f"{exact:,} exact and {near or 0:,} near ones left out"
    if info["left_out_by_weight"]:
        yield "by weight", f"{info['left_out_by_weight']:,} documents left out"
    if info["cleaning"] is not None:
        yield "cleaned", _counts(info["cleaning"]) or "nothing to clean"
    quarantine = info["quarantine"]
    bad = f"{quarantine['records']:,} of {quarantine['of_records']:,} records"
    reasons = _counts(quarantine["by_reason"])
    yield "quarantined", f"{bad}: {reasons}" if reasons else bad
    if kept := _counts(quarantine.get("kept_by_reason", {})):
        yield "", f"kept: {kept}"
    yield "skipped", f"{info['empty_documents']:,} empty documents"


def _packings(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for pack in info["packings"]:
        if pack["mean_blocks"] is not None and pack["mode"] == "packed":
            shares = f"{pack['mean_blocks']:.2f} documents or parts of one a row"
        else:
            shares = f"{100 * pack['two_segment_share']:.1f} % with two segments"
        shares += f", {100 * pack['fill_share']:.1f} % of the positions filled"
        name = f"length {pack['length']}, {pack['mode']}"
        yield "packing", f"{name}: {pack['num_examples']:,} examples, {shares}"
        rows = sum(pack["rows_by_fill"]) or 1
        tenths = " ".join(f"{100 * number / rows:.1f}" for number in pack["rows_by_fill"])
        yield "", f"% of the rows by tenths of their fill: {tenths}"
    if not info["packings"]:
        yield "packing", "none yet: run `electra-dist corpus pack`"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items())
