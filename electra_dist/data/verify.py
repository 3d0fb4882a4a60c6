"""Is a corpus what its manifest says? Every byte is read once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from electra_dist.data import store
from electra_dist.data.examples import used_lengths
from electra_dist.data.tokenize import tokenizer_sha256
from electra_dist.errors import UserError

_BLOCK_TOKENS = 4 << 20  # bincount makes int64 of what it is given: 32 MiB a block


def verify_corpus(folder: str | Path) -> list[str]:
    """Problems of a corpus and its packings, each a sentence; an empty list means that it is whole.

    Checks sizes and hashes of every file, the tokenizer's sha256, that ids are in the vocabulary
    and are counted as recorded, that offsets are monotone, and that every example fits into its
    length and its shard. Raises UserError when the folder is no corpus at all.
    """
    folder = Path(folder)
    manifest = store.read_manifest(folder, "corpus", "build one with `electra-dist corpus build`")
    try:
        return _corpus_problems(folder, manifest)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        return [f"{folder / 'manifest.json'} lacks or has a wrong field: {error!r}"]


def _corpus_problems(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    problems = _tokenizer_problems(folder, manifest)
    counts = np.zeros(manifest["vocab_size"], np.int64)
    for split in store.SPLITS:
        entry = manifest["splits"][split]
        for record in entry["shards"]:
            found = _file_problems(folder, record)
            problems += found or _shard_problems(folder, record, manifest, split, counts)
        for name in ("documents", "sentences", "tokens"):
            if entry[name] != sum(record[name] for record in entry["shards"]):
                problems.append(f"manifest.json: {name} of {split} is not the sum over its shards")
    unigram = _file_problems(folder, manifest["unigram"])
    problems += unigram
    if not problems and not np.array_equal(_arrays(folder, manifest["unigram"])["counts"], counts):
        problems.append(
            f"{manifest['unigram']['file']}: counts differ from the tokens of the train split"
        )
    records = store.token_file_records(manifest)
    hashes = sorted(f"{record['file']} {record['xxh3_128']}" for record in records)
    parts = [*hashes, manifest["tokenizer"]["sha256"], manifest["dtype"]]
    if store.fingerprint_of(parts) != manifest["fingerprint"]:
        problems.append("manifest.json: the fingerprint is not that of the recorded hashes")
    store_is_whole = not problems
    for pack in sorted(folder.glob("pack_*")):
        if (pack / "manifest.json").is_file() and not pack.name.endswith(".building"):
            found = _packing_problems(pack, manifest, store_is_whole)
            problems += [f"{pack.name}/{problem}" for problem in found]
    return problems


def _tokenizer_problems(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    entry = manifest["tokenizer"]
    path = folder / entry["file"]
    if not path.is_file():
        return [f"{entry['file']} is missing"]
    if tokenizer_sha256(path) != entry["sha256"]:
        return [
            f"{entry['file']} is not the tokenizer that the corpus was built with (sha256 differs)"
        ]
    return []


def _file_problems(folder: Path, record: Mapping[str, Any]) -> list[str]:
    try:
        store.check_sizes(folder, [record])
    except UserError as error:
        return [str(error)]
    if store.file_xxh3_128(folder / record["file"]) != record["xxh3_128"]:
        return [f"{record['file']} is damaged: its content does not match its recorded hash"]
    return []


def _arrays(folder: Path, record: Mapping[str, Any]) -> dict[str, store.Array]:
    return store.read_arrays(folder / record["file"])


def _shard_problems(
    folder: Path,
    record: Mapping[str, Any],
    manifest: Mapping[str, Any],
    split: str,
    counts: store.Array,
) -> list[str]:
    """Adds the train split's ids to `counts` on the way."""
    shard = store.TokenShard(**_arrays(folder, record))
    name, tokens = record["file"], shard.tokens
    problems = []
    if tokens.dtype.name != manifest["dtype"] or len(tokens) != record["tokens"]:
        problems.append(f"{name}: tokens are {tokens.dtype.name} [{len(tokens)}], not as recorded")
    for what, offsets, num, end in (
        ("sentence_offsets", shard.sentence_offsets, record["sentences"], len(tokens)),
        ("document_offsets", shard.document_offsets, record["documents"], record["sentences"]),
    ):
        in_order = bool(np.all(np.diff(offsets) > 0)) and len(offsets) == num + 1
        if not in_order or offsets[0] != 0 or offsets[-1] != end:
            problems.append(f"{name}: {what} do not run from 0 up to {end} in {num} steps")
    if len(shard.word_starts) != (len(tokens) + 7) // 8:
        problems.append(f"{name}: word_starts do not hold one bit a token")
    for start in range(0, len(tokens), _BLOCK_TOKENS):
        block_counts = np.bincount(tokens[start : start + _BLOCK_TOKENS], minlength=len(counts))
        if len(block_counts) > len(counts):
            problems.append(
                f"{name}: token id {len(block_counts) - 1}, the vocabulary has {len(counts)}"
            )
            break
        if split == "train":
            counts += block_counts
    return problems


def _packing_problems(folder: Path, corpus: Mapping[str, Any], store_is_whole: bool) -> list[str]:
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if manifest["corpus_fingerprint"] != corpus["fingerprint"]:
            return ["manifest.json: packed over another corpus (fingerprint differs); pack again"]
        files, length = manifest["files"], manifest["length"]
        recorded = [*files, *manifest.get("frozen", [])]
        problems = [p for record in recorded for p in _file_problems(folder, record)]
        if problems:
            return problems
        for split, key in (("train", "num_examples"), ("held_out", "held_out_examples")):
            records = [record for record in files if record["split"] == split]
            shards = corpus["splits"][split]["shards"]
            if len(records) != len(shards) or sum(r["examples"] for r in records) != manifest[key]:
                problems.append(f"manifest.json: files or {key} of {split} do not match")
                continue
            for record, shard in zip(records, shards, strict=True):
                if manifest["mode"] != "packed":
                    problems += _example_problems(folder, record, shard["tokens"], length)
                elif store_is_whole:  # else what it says of documents is not to be relied on
                    problems += _block_problems(folder, record, shard, length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"manifest.json is damaged or lacks a field: {error!r}"]
    return problems


def _example_problems(
    folder: Path, record: Mapping[str, Any], num_tokens: int, length: int
) -> list[str]:
    examples = store.Examples(**_arrays(folder, record))
    taken = examples.length_a.astype(np.int64) + examples.length_b
    problems = []
    if len(examples.start) != record["examples"]:
        problems.append(
            f"{record['file']}: holds {len(examples.start)} examples, recorded {record['examples']}"
        )
    if np.any(examples.length_a < 1) or np.any(used_lengths(examples) > length):
        problems.append(f"{record['file']}: an example is empty or longer than {length}")
    if np.any(examples.start < 0) or np.any(examples.start + taken > num_tokens):
        problems.append(f"{record['file']}: an example reaches outside its token shard")
    return problems


def _block_problems(
    folder: Path, record: Mapping[str, Any], shard: Mapping[str, Any], length: int
) -> list[str]:
    """Rows of mode `packed`: none too long, tiling the shard, each block within one document."""
    name, examples = record["file"], store.PackedExamples(**_arrays(folder, record))
    store_arrays = _arrays(folder.parent, shard)
    document_ends = store_arrays["sentence_offsets"][store_arrays["document_offsets"][1:]]
    offsets, lengths = examples.block_offsets, examples.block_lengths
    if len(examples.start) != record["examples"]:
        return [f"{name}: holds {len(examples.start)} examples, recorded {record['examples']}"]
    in_order = len(offsets) == len(examples.start) + 1 and bool(np.all(np.diff(offsets) > 0))
    if not in_order or offsets[0] != 0 or offsets[-1] != len(lengths) or np.any(lengths < 1):
        return [f"{name}: a row or a block is empty, or blocks are missing"]
    problems = []
    if np.any(used_lengths(examples) > length):
        problems.append(f"{name}: a row is longer than {length}")
    bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if not np.array_equal(bounds[offsets[:-1]], examples.start):
        problems.append(f"{name}: a row does not start where the one before it ends")
    if bounds[-1] != document_ends[-1] or not np.isin(document_ends, bounds).all():
        problems.append(f"{name}: a block reaches over a document's end, or tokens are left out")
    return problems
