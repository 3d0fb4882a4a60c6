"""From documents to rows: which tokens each row holds, as numbers over the token store.

Modes `full` and `google` make ELECTRA's examples of one or two segments.
What a document gives depends on its sentence lengths and on (seed, split, shard, document) only,
never on its neighbours. Mode `packed` fills rows with consecutive documents; it draws nothing.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from electra_dist.data.store import Array, Examples, PackedExamples, TokenShard

SINGLE_SEGMENT_PROBABILITY = 0.1
SHORT_TARGET_PROBABILITY = 0.05
OVERSHOOT_PROBABILITY = 0.5
SHORTEST_TARGET = 5
SHORTEST_CUT = 8
"""Tokens: where fewer fit behind the last block of a row, the row is padded instead."""


def pack_shard(shard: TokenShard, key: tuple[int, int, int], length: int, mode: str) -> Examples:
    """The examples of one token shard; `key` is (seed, index of the split, index of the shard).

    A million sentences take about 1 s of a core at length 128; tokenizing them takes 30 times that.
    """
    first_sentences = shard.document_offsets.tolist()
    first_tokens = shard.sentence_offsets[shard.document_offsets].tolist()
    examples: list[tuple[int, int, int]] = []
    for document, rng in enumerate(_document_generators(key, len(first_sentences) - 1)):
        sentences = slice(first_sentences[document] + 1, first_sentences[document + 1] + 1)
        sentence_ends = shard.sentence_offsets[sentences].tolist()
        examples += pack_document(first_tokens[document], sentence_ends, length, mode, rng)
    columns = np.array(examples, np.int64).reshape(-1, 3)
    return Examples(
        start=columns[:, 0].copy(),
        length_a=columns[:, 1].astype(np.uint16),
        length_b=columns[:, 2].astype(np.uint16),
    )


def pack_document(
    start: int, sentence_ends: Sequence[int], length: int, mode: str, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """The examples of one document: (start, length of A, length of B), all in tokens.

    The document is the tokens from `start` on, its sentences end before `sentence_ends`. Sentences
    are gathered until they reach the target; then an example is made. `full`: what did not fit is
    the first piece of the next example, so the examples tile the document. `google`: it is dropped.
    The target is drawn anew at a document's start too, which keeps the share of short targets at
    0.05 for documents of any length (*google* carries it from document to document).
    """
    examples: list[tuple[int, int, int]] = []
    first, last = 0, len(sentence_ends) - 1
    while start < sentence_ends[last]:
        target = _draw_target(length, rng)
        # Never less than what was carried over: but for 2 tokens that is of one sentence, and a
        # target is 5 at least.
        stop = min(bisect_left(sentence_ends, start + target, first), last)
        pieces_ends = sentence_ends[first : stop + 1]
        length_a, length_b = split_segments(start, pieces_ends, target, length, rng)
        examples.append((start, length_a, length_b))
        start = start + length_a + length_b if mode == "full" else sentence_ends[stop]
        first = bisect_right(sentence_ends, start, first)
    return examples


def split_segments(
    start: int, piece_ends: Sequence[int], target: int, length: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Lengths of A and B of the gathered pieces, cut so that [CLS] A [SEP] B [SEP] fits `length`.

    The pieces are the tokens from `start` on. A takes the first, and all that end before its
    target; the one after them too if a fair coin says so and A is still under its target. What is
    left goes to B.
    """
    total = piece_ends[-1] - start
    if rng.random() < SINGLE_SEGMENT_PROBABILITY:
        return min(total, length - 2), 0
    first_target = (target - 3) // 2
    num_fitting = bisect_left(piece_ends, start + first_target)
    num_pieces = max(1, num_fitting)
    if 0 < num_fitting < len(piece_ends) and rng.random() < OVERSHOOT_PROBABILITY:
        num_pieces += 1
    length_a = piece_ends[num_pieces - 1] - start
    length_b = total - length_a
    length_a = min(length_a, length - 2)
    return length_a, min(length_b, max(0, length - length_a - 3))


def pack_blocks(shard: TokenShard, length: int) -> PackedExamples:
    """Rows of mode `packed`: the shard's documents one after the other, [CLS] document [SEP] each.

    A document that does not fit is cut where the row ends, and its rest starts the next row. Rows
    tile the shard: no token is lost, and padding stands only at the end of a row where less than
    `SHORTEST_CUT` tokens would have fitted.
    """
    document_ends = shard.sentence_offsets[shard.document_offsets[1:]]
    start_E = np.array(_row_starts(document_ends, length), np.int64)
    bounds = np.union1d(start_E, np.concatenate([[0], document_ends]))  # of all blocks
    first_block_E = np.searchsorted(bounds, start_E)
    return PackedExamples(
        start=start_E,
        block_offsets=np.append(first_block_E, len(bounds) - 1),
        block_lengths=np.diff(bounds).astype(np.uint16),
    )


def _row_starts(document_ends: Array, length: int) -> list[int]:
    """The token that each row starts with; a loop over rows, as each depends on the one before."""
    ends = document_ends.tolist()
    # Positions of a row that starts at token s of document d and ends with document e:
    # ends[e] - s + 2 (e - d + 1). So the last e that fits is found in this rising list.
    ends_and_specials = (document_ends + 2 * np.arange(len(ends))).tolist()
    starts = []
    start = document = 0
    while document < len(ends):
        starts.append(start)
        room = length - 2 + start + 2 * document  # for ends[e] + 2 e
        next_document = bisect_right(ends_and_specials, room, document)
        whole_end = ends[next_document - 1] if next_document > document else start
        # What the cut document may have: its two special tokens count 2 * next_document in `room`.
        cut = room - whole_end - 2 * next_document
        start = whole_end
        if next_document < len(ends) and (next_document == document or cut >= SHORTEST_CUT):
            start += cut
        document = next_document
    return starts


def used_lengths(examples: Examples | PackedExamples) -> Array:
    """int64 [E]: positions that each row fills, its special tokens included."""
    if isinstance(examples, PackedExamples):
        taken = np.cumsum(examples.block_lengths + np.int64(2))
        return np.diff(taken[examples.block_offsets[1:] - 1], prepend=0)
    has_b = examples.length_b > 0
    return examples.length_a.astype(np.int64) + examples.length_b + 2 + has_b


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
