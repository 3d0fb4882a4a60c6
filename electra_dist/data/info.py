"""What a corpus holds, as JSON and as text for people."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from electra_dist.data.store import SPLITS, Corpus


def corpus_info(folder: str | Path) -> dict[str, Any]:
    """Counts, document lengths, unknown tokens, packings and quarantine of a corpus; JSON-able.

    Raises UserError when the folder is no whole corpus.
    """
    corpus = Corpus.open(folder)
    manifest = corpus.manifest
    counts = corpus.unigram_counts()
    return {
        "folder": str(corpus.folder),
        "fingerprint": corpus.fingerprint,
        "vocab_size": corpus.vocab_size,
        "dtype": manifest["dtype"],
        "tokenizer": manifest["tokenizer"],
        "splits": {split: _split_info(corpus, split) for split in SPLITS},
        "unknown_token_share": float(counts[corpus.special_ids.unk] / counts.sum()),
        "bytes": sum(p.stat().st_size for p in corpus.folder.rglob("*") if p.is_file()),
        "sources": [
            {
                "kind": source["kind"],
                "path": source["path"],
                "files": len(source["files"]),
                "bytes": sum(file["bytes"] for file in source["files"]),
                "documents": sum(file["documents"] for file in source["files"]),
            }
            for source in manifest["sources"]
        ],
        "empty_documents": manifest["empty_documents"],
        "quarantine": manifest["quarantine"],
        "packings": _packings(corpus.folder),
    }


def render_info(info: dict[str, Any]) -> str:
    """The same as a few aligned lines."""
    tokenizer = info["tokenizer"]
    casing = "lower-cased" if tokenizer["lowercase"] else "cased"
    size = f"{info['bytes'] / 1e6:,.1f} MB"
    rows = [("corpus", f"{info['folder']} ({size}), fingerprint {info['fingerprint']}")]
    vocabulary = f"{info['vocab_size']:,} ids as {info['dtype']}"
    rows.append(("tokenizer", f"{tokenizer['kind']}, {casing}, {vocabulary}"))
    for split, entry in info["splits"].items():
        counts = (f"{entry[name]:,} {name}" for name in ("documents", "sentences", "tokens"))
        rows.append((split, ", ".join(counts)))
        if entry["documents"]:
            mean, median = entry["mean_document_tokens"], entry["median_document_tokens"]
            rows.append(("", f"document length: mean {mean:,.1f}, median {median:,.1f} tokens"))
    rows.append(("unknown", f"{100 * info['unknown_token_share']:.3f} % of the tokens are [UNK]"))
    for source in info["sources"]:
        counts = (f"{source[name]:,} {name}" for name in ("files", "bytes", "documents"))
        rows.append(("source", f"{source['kind']} {source['path']}: {', '.join(counts)}"))
    quarantine = info["quarantine"]
    bad = f"{quarantine['records']:,} of {quarantine['of_records']:,} records"
    reasons = [f"{number:,} {reason}" for reason, number in quarantine["by_reason"].items()]
    rows.append(("quarantined", ": ".join([bad, ", ".join(reasons)] if reasons else [bad])))
    rows.append(("skipped", f"{info['empty_documents']:,} empty documents"))
    for pack in info["packings"]:
        shares = (
            f"{pack['mean_blocks']:.2f} documents or parts of one a row"
            if pack["mode"] == "packed"
            else f"{100 * pack['two_segment_share']:.1f} % with two segments"
        )
        shares += f", {100 * pack['fill_share']:.1f} % of the positions filled"
        name = f"length {pack['length']}, {pack['mode']}"
        rows.append(("packing", f"{name}: {pack['num_examples']:,} examples, {shares}"))
    if not info["packings"]:
        rows.append(("packing", "none yet: run `electra-dist corpus pack`"))
    return "\n".join(f"{name:<12} {text}" for name, text in rows)


def _split_info(corpus: Corpus, split: str) -> dict[str, Any]:
    entry = corpus.manifest["splits"][split]
    shards = corpus.shards(split)
    lengths = [np.diff(shard.sentence_offsets[shard.document_offsets]) for shard in shards]
    lengths_D = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    return {
        "documents": entry["documents"],
        "sentences": entry["sentences"],
        "tokens": entry["tokens"],
        "shards": len(shards),
        "mean_document_tokens": float(lengths_D.mean()) if len(lengths_D) else 0.0,
        "median_document_tokens": float(np.median(lengths_D)) if len(lengths_D) else 0.0,
    }


def _packings(folder: Path) -> list[dict[str, Any]]:
    wanted = (
        "length",
        "mode",
        "seed",
        "num_examples",
        "held_out_examples",
        "two_segment_share",
        "short_sequence_share",
        "fill_share",
        "mean_blocks",
    )
    paths = sorted(folder.glob("pack_*_*/manifest.json"))
    manifests = [
        json.loads(p.read_bytes()) for p in paths if not p.parent.name.endswith(".building")
    ]
    return [{name: manifest[name] for name in wanted} for manifest in manifests]
