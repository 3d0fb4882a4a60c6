"""From documents to training examples: section 7 of the algorithm, over sentence lengths alone.

A sentence is only its number of tokens here: examples are written as (start, length_a, length_b)
over the token store, so any number of lengths and modes pack over the same tokens. Which examples a
document gives depends on its sentence lengths and on (seed, split, shard, document) only, never on
its neighbours.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from electra_dist.data.store import (
    EXAMPLE_FILE_PREFIX,
    FORMAT_VERSION,
    PACKING_MODES,
    SPLITS,
    Array,
    Corpus,
    Examples,
    TokenShard,
    commit_folder,
    fingerprint_of,
    packing_folder,
    read_manifest,
    write_arrays,
    write_json,
)
from electra_dist.errors import UserError

SINGLE_SEGMENT_PROBABILITY = 0.1
SHORT_TARGET_PROBABILITY = 0.05
OVERSHOOT_PROBABILITY = 0.5
SHORTEST_TARGET = 5
MAX_LENGTH = 65535  # segment lengths are stored as uint16


def pack_document(
    sentence_lengths: Sequence[int], length: int, mode: str, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """The examples of one document: (start in it, length_a, length_b), all in tokens.

    Sentences (lengths of at least 1) are gathered until they reach the target; then an example is
    made. `full`: what did not fit is the first piece of the next example, so the examples tile the
    document. `google`: it is dropped. The target is drawn anew at a document's start too, which
    keeps the share of short targets at 0.05 for documents of any length (*google* carries it from
    document to document).
    """
    examples: list[tuple[int, int, int]] = []
    pieces: list[int] = []
    start = num_gathered = 0
    target = _draw_target(length, rng)
    last = len(sentence_lengths) - 1
    for index, sentence_length in enumerate(sentence_lengths):
        pieces.append(sentence_length)
        num_gathered += sentence_length
        while num_gathered >= target or (index == last and num_gathered > 0):
            length_a, length_b = split_segments(pieces, target, length, rng)
            examples.append((start, length_a, length_b))
            num_taken = length_a + length_b if mode == "full" else num_gathered
            pieces = _drop_front(pieces, num_taken)
            start += num_taken
            num_gathered -= num_taken
            target = _draw_target(length, rng)
    return examples


def split_segments(
    pieces: Sequence[int], target: int, length: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Lengths of A and B of the gathered pieces, cut so that [CLS] A [SEP] B [SEP] fits `length`.

    The piece that closes A is the first that overshoots A's target and loses the coin; all after it
    goes to B.
    """
    if rng.random() < SINGLE_SEGMENT_PROBABILITY:
        return min(sum(pieces), length - 2), 0
    first_target = (target - 3) // 2
    length_a = pieces[0]
    for piece in pieces[1:]:
        fits = length_a + piece < first_target
        if not fits and (length_a >= first_target or rng.random() >= OVERSHOOT_PROBABILITY):
            break
        length_a += piece
    length_b = sum(pieces) - length_a
    length_a = min(length_a, length - 2)
    return length_a, min(length_b, max(0, length - length_a - 3))


def pack(corpus_folder: str | Path, length: int, mode: str = "full", seed: int = 0) -> Path:
    """Packs a corpus into examples of at most `length` tokens; returns its `pack_<length>_<mode>`.

    A packing that is already there with the same seed and corpus is left as it is. Raises UserError
    for a length or mode that cannot be, and when another packing is in the way.
    """
    if not SHORTEST_TARGET <= length <= MAX_LENGTH:
        raise UserError(
            f"--length {length} is out of range: use {SHORTEST_TARGET} to {MAX_LENGTH} tokens"
        )
    if mode not in PACKING_MODES:
        raise UserError(f"--mode {mode!r} is unknown: use one of {', '.join(PACKING_MODES)}")
    if seed < 0:
        raise UserError(f"--seed {seed} is negative: use 0 or more")
    corpus = Corpus.open(corpus_folder)
    folder = packing_folder(corpus.folder, length, mode)
    if folder.exists():
        _check_same(folder, corpus, seed)
        return folder
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    write_json(building / "manifest.json", _write_examples(building, corpus, length, mode, seed))
    commit_folder(building, folder)
    return folder


def pack_shard(shard: TokenShard, key: tuple[int, int, int], length: int, mode: str) -> Examples:
    """All examples of one token shard; `key` is (seed, index of the split, index of the shard)."""
    sentence_lengths = np.diff(shard.sentence_offsets)
    first_sentences = shard.document_offsets.tolist()
    first_tokens = shard.sentence_offsets[shard.document_offsets].tolist()
    starts: list[int] = []
    lengths_a: list[int] = []
    lengths_b: list[int] = []
    for document, rng in enumerate(_document_generators(key, len(first_sentences) - 1)):
        lengths = sentence_lengths[
            first_sentences[document] : first_sentences[document + 1]
        ].tolist()
        for start, length_a, length_b in pack_document(lengths, length, mode, rng):
            starts.append(first_tokens[document] + start)
            lengths_a.append(length_a)
            lengths_b.append(length_b)
    return Examples(
        start=np.array(starts, np.int64),
        length_a=np.array(lengths_a, np.uint16),
        length_b=np.array(lengths_b, np.uint16),
    )


def _document_generators(
    key: tuple[int, int, int], num_documents: int
) -> Iterator[np.random.Generator]:
    """A generator a document, of the key and the document's index; valid until the next one."""
    philox = np.random.Philox(key=np.random.SeedSequence(key).generate_state(2, np.uint64))
    rng = np.random.Generator(philox)
    state: Any = philox.state  # typed as a plain mapping, but its "state" holds arrays
    for document in range(num_documents):
        # Moving one Philox costs 1 us; making a generator costs 11, more than packing a short
        # document.
        state["state"]["counter"][:] = (0, 0, 0, document)
        philox.state = state
        yield rng


def _draw_target(length: int, rng: np.random.Generator) -> int:
    if rng.random() < SHORT_TARGET_PROBABILITY:
        return int(rng.integers(SHORTEST_TARGET, length + 1))
    return length


def _drop_front(pieces: list[int], num_tokens: int) -> list[int]:
    """The pieces without their first `num_tokens` tokens; a cut piece keeps its rest."""
    for index, piece in enumerate(pieces):
        if num_tokens < piece:
            return [piece - num_tokens, *pieces[index + 1 :]]
        num_tokens -= piece
    return []


def _write_examples(
    folder: Path, corpus: Corpus, length: int, mode: str, seed: int
) -> dict[str, Any]:
    files: list[dict[str, Any]] = []
    num_examples = dict.fromkeys(SPLITS, 0)
    num_two_segment = num_short = 0
    for split_index, split in enumerate(SPLITS):
        for shard_index, shard in enumerate(corpus.shards(split)):
            examples = pack_shard(shard, (seed, split_index, shard_index), length, mode)
            name = f"{EXAMPLE_FILE_PREFIX[split]}_{shard_index:05d}.safetensors"
            record = write_arrays(folder / name, asdict(examples))
            files.append({"split": split, "examples": len(examples.start), **asdict(record)})
            num_examples[split] += len(examples.start)
            if split == "train":
                num_two_segment += int(np.count_nonzero(examples.length_b))
                num_short += int(np.count_nonzero(used_length(examples) < length))
    content = [corpus.fingerprint, f"length {length}", f"mode {mode}", f"seed {seed}"]
    return {
        "format_version": FORMAT_VERSION,
        "length": length,
        "mode": mode,
        "seed": seed,
        "corpus_fingerprint": corpus.fingerprint,
        "fingerprint": fingerprint_of(
            content + sorted(f"{f['file']} {f['xxh3_128']}" for f in files)
        ),
        "num_examples": num_examples["train"],
        "held_out_examples": num_examples["held_out"],
        "two_segment_share": num_two_segment / num_examples["train"],
        "short_sequence_share": num_short / num_examples["train"],
        "files": files,
    }


def used_length(examples: Examples) -> Array:
    """int64 [E]: positions that an example fills, with its two or three special tokens."""
    has_b = examples.length_b > 0
    return examples.length_a.astype(np.int64) + examples.length_b + 2 + has_b


def _check_same(folder: Path, corpus: Corpus, seed: int) -> None:
    manifest = read_manifest(folder, "packing", f"remove {folder} and pack again")
    found = (manifest["corpus_fingerprint"], manifest["seed"])
    if found != (corpus.fingerprint, seed):
        raise UserError(
            f"{folder} is packed with seed {found[1]} of corpus {found[0]}, wanted seed {seed}"
            f" of {corpus.fingerprint}: remove it first"
        )
