from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.data import examples
from electra_dist.data.store import Array, TokenShard

SENTENCES = st.lists(st.integers(1, 60) | st.integers(1, 900), min_size=1, max_size=40)


def shard(documents: list[list[int]]) -> TokenShard:
    lengths = np.array([n for document in documents for n in document], np.int64)
    sentence_offsets = np.concatenate([[0], np.cumsum(lengths)])
    document_offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])
    empty = np.zeros(0, np.uint8)
    return TokenShard(
        tokens=empty,
        sentence_offsets=sentence_offsets,
        document_offsets=document_offsets,
        word_starts=empty,
    )


def pack_document(
    lengths: list[int], length: int, mode: str, seed: int, start: int = 0
) -> list[tuple[int, int, int]]:
    """The examples of a document whose sentences have `lengths`."""
    ends = list(accumulate(lengths, initial=start))[1:]
    return examples.pack_document(start, ends, length, mode, np.random.default_rng(seed))


def split_segments(
    pieces: list[int], target: int, length: int, rng: np.random.Generator, start: int = 0
) -> tuple[int, int]:
    ends = list(accumulate(pieces, initial=start))[1:]
    return examples.split_segments(start, ends, target, length, rng)


def short_sentences(num_documents: int, num_sentences: int = 400) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return rng.integers(5, 16, (num_documents, num_sentences)).tolist()


@settings(max_examples=150, deadline=None)
@given(SENTENCES, st.integers(5, 300), st.integers(0, 1000))
def test_full_mode_tiles_every_document_in_order(
    lengths: list[int], length: int, seed: int
) -> None:
    position = 0
    for start, length_a, length_b in pack_document(lengths, length, "full", seed):
        assert start == position
        assert length_a >= 1
        assert length_b >= 0
        assert length_a + length_b + (3 if length_b else 2) <= length
        position += length_a + length_b
    assert position == sum(lengths)


@settings(max_examples=150, deadline=None)
@given(SENTENCES, st.integers(5, 300), st.integers(0, 1000))
def test_google_mode_starts_at_sentences_and_drops_only_what_was_cut_off(
    lengths: list[int], length: int, seed: int
) -> None:
    found = pack_document(lengths, length, "google", seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    ends = [start for start, _, _ in found[1:]] + [offsets[-1]]
    assert found[0][0] == 0
    for (start, length_a, length_b), end in zip(found, ends, strict=True):
        assert start in offsets
        assert length_a >= 1
        assert length_a + length_b + (3 if length_b else 2) <= length
        taken = length_a + length_b
        # What is dropped is dropped because the example is full.
        assert taken == end - start or taken >= length - 3


def oracle_split(
    pieces: list[int], target: int, length: int, rng: np.random.Generator
) -> tuple[int, int]:
    """The paper's rules on lists of tokens, with contiguous segments."""
    first_target = 100000 if rng.random() < 0.1 else (target - 3) // 2
    first: list[int] = []
    second: list[int] = []
    for index, piece in enumerate(pieces):
        sentence = [index] * piece
        if not second and (
            len(first) == 0
            or len(first) + len(sentence) < first_target
            or (len(first) < first_target and rng.random() < 0.5)
        ):
            first += sentence
        else:
            second += sentence
    first = first[: length - 2]
    second = second[: max(0, length - len(first) - 3)]
    return len(first), len(second)


def oracle_document(
    lengths: list[int], length: int, mode: str, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """Section 7 sentence by sentence, with the pieces of the current example in a list."""

    def draw_target() -> int:
        return int(rng.integers(5, length + 1)) if rng.random() < 0.05 else length

    found, pieces, start, target = [], [], 0, draw_target()
    for index, sentence in enumerate(lengths):
        pieces.append(sentence)
        while sum(pieces) >= target or (index == len(lengths) - 1 and pieces):
            length_a, length_b = oracle_split(pieces, target, length, rng)
            found.append((start, length_a, length_b))
            dropped = length_a + length_b if mode == "full" else sum(pieces)
            start += dropped
            while pieces and dropped >= pieces[0]:
                dropped -= pieces.pop(0)
            if pieces:
                pieces[0] -= dropped
            target = draw_target()
    return found


@pytest.mark.parametrize("mode", ["full", "google"])
@settings(max_examples=100, deadline=None)
@given(SENTENCES | st.lists(st.integers(1, 4), min_size=1, max_size=200), st.data())
def test_examples_are_those_of_the_rules_sentence_by_sentence(
    mode: str, lengths: list[int], data: st.DataObject
) -> None:
    length, seed = data.draw(st.integers(5, 300)), data.draw(st.integers(0, 10000))
    start = data.draw(st.integers(0, 1000))
    expected = oracle_document(lengths, length, mode, np.random.default_rng(seed))
    found = pack_document(lengths, length, mode, seed, start)
    assert found == [(start + first, a, b) for first, a, b in expected]


@settings(max_examples=200, deadline=None)
@given(SENTENCES, st.integers(5, 300), st.data())
def test_segments_are_those_of_the_rules_on_tokens(
    pieces: list[int], length: int, data: st.DataObject
) -> None:
    target = data.draw(st.integers(5, length))
    seed = data.draw(st.integers(0, 10000))
    start = data.draw(st.integers(0, 1000))
    found = split_segments(pieces, target, length, np.random.default_rng(seed), start)
    assert found == oracle_split(pieces, target, length, np.random.default_rng(seed))


def test_one_example_in_ten_is_a_single_segment() -> None:
    rng = np.random.default_rng(0)
    pieces = [10] * 13
    shares = [split_segments(pieces, 128, 128, rng)[1] == 0 for _ in range(40000)]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.006)


def test_a_fair_coin_decides_whether_a_sentence_may_overshoot_the_first_segment() -> None:
    rng = np.random.default_rng(0)
    # A aims at 62: 50 fit, the second piece would overshoot, the third comes after.
    found = [split_segments([50, 30, 60], 128, 128, rng) for _ in range(40000)]
    two = [length_a for length_a, length_b in found if length_b > 0]
    assert set(two) == {50, 80}
    assert np.mean(np.array(two) == 80) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("mode", ["full", "google"])
@pytest.mark.parametrize("num_sentences", [1, 400])
def test_one_target_in_twenty_is_short_in_documents_of_any_length(
    mode: str, num_sentences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[int] = []

    def split(
        start: int, ends: list[int], target: int, length: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        targets.append(target)
        return oracle_split(np.diff(ends, prepend=start).tolist(), target, length, rng)

    monkeypatch.setattr(examples, "split_segments", split)
    documents = short_sentences(4000 // num_sentences * 5, num_sentences)
    examples.pack_shard(shard(documents), (0, 0, 0), 64, mode)
    short = np.array(targets) < 64
    # Uniform in [5, 64] is 64 itself once in 60.
    expected = 0.05 * 59 / 60
    assert np.mean(short) == pytest.approx(expected, abs=4 * np.sqrt(0.05 / len(targets)))
    assert min(targets) >= 5
    assert np.array(targets)[short].mean() == pytest.approx(34, abs=7)


@pytest.mark.parametrize("mode", ["full", "google"])
def test_nine_in_ten_examples_have_two_segments_in_long_documents(mode: str) -> None:
    found = examples.pack_shard(shard(short_sentences(60)), (0, 0, 0), 128, mode)
    assert np.mean(found.length_b > 0) == pytest.approx(0.89, abs=0.02)


@pytest.mark.parametrize("mode", ["full", "google"])
def test_the_shares_of_a_shard_are_those_of_the_algorithm(mode: str) -> None:
    # One example a document where the target is not short: 50 fit A's aim of 62, 30 more do not.
    found = examples.pack_shard(shard([[50, 30, 45]] * 20000), (0, 0, 0), 128, mode)
    first = found.start % 125 == 0
    whole = first & (found.length_a.astype(int) + found.length_b == 125)
    single = whole & (found.length_b == 0)
    assert np.mean(single[whole]) == pytest.approx(0.1, abs=0.008)
    assert set(found.length_a[whole & ~single].tolist()) == {50, 80}
    assert np.mean(found.length_a[whole & ~single] == 80) == pytest.approx(0.5, abs=0.015)
    # A target of up to 50 takes the first sentence alone, one of up to 80 the first two.
    short = first & ~whole
    assert np.mean(short[first]) == pytest.approx(0.05 * 76 / 124, abs=0.005)


def rows(documents: list[list[int]], key: tuple[int, int, int]) -> Array:
    found = examples.pack_shard(shard(documents), key, 64, "full")
    return np.stack([found.start, found.length_a, found.length_b], axis=1)


def test_examples_of_a_document_depend_on_its_index_and_the_key_alone() -> None:
    documents = short_sentences(6, 50)
    together = rows(documents, (7, 0, 2))
    changed = rows([[3], [400], *documents[2:]], (7, 0, 2))
    from_third = together[together[:, 0] >= sum(map(sum, documents[:2]))][:, 1:]
    np.testing.assert_array_equal(from_third, changed[changed[:, 0] >= 403][:, 1:])
    np.testing.assert_array_equal(together, rows(documents, (7, 0, 2)))
    for other in ((8, 0, 2), (7, 1, 2), (7, 0, 3)):
        assert not np.array_equal(together, rows(documents, other))


def test_equal_documents_are_cut_differently() -> None:
    document = short_sentences(1, 50)[0]
    found = rows([document] * 3, (0, 0, 0))
    parts = [found[found[:, 0] // sum(document) == i][:, 1:].tolist() for i in range(3)]
    assert parts[0] != parts[1] != parts[2]


DOCUMENTS = st.lists(
    st.lists(st.integers(1, 12) | st.integers(1, 400), min_size=1, max_size=4),
    min_size=1,
    max_size=40,
)


def oracle_blocks(documents: list[list[int]], length: int) -> list[list[int]]:
    """Lengths of the blocks of every row, document by document."""
    rows: list[list[int]] = []
    row: list[int] = []
    for document in documents:
        left = sum(document)
        while left:
            fits = length - sum(row) - 2 * len(row) - 2
            if left <= fits:
                row.append(left)
                break
            if not row or fits >= 8:
                row.append(fits)
                left -= fits
            rows.append(row)
            row = []
    return [*rows, row] if row else rows


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.integers(5, 300))
def test_packed_rows_hold_every_document_once_and_in_order(
    documents: list[list[int]], length: int
) -> None:
    found = examples.pack_blocks(shard(documents), length)
    assert (found.start.dtype, found.block_offsets.dtype) == (np.int64, np.int64)
    assert found.block_lengths.dtype == np.uint16
    blocks = np.split(found.block_lengths.astype(int), found.block_offsets[1:-1])
    assert [row.tolist() for row in blocks] == oracle_blocks(documents, length)
    document_of = np.repeat(np.arange(len(documents)), [sum(document) for document in documents])
    next_token = 0
    for start, row, used in zip(found.start, blocks, examples.used_lengths(found), strict=True):
        assert start == next_token
        assert used == sum(row) + 2 * len(row) <= length
        for block in row:
            # No block reaches over a document's end; together they are all tokens.
            assert len(set(document_of[next_token : next_token + block])) == 1
            next_token += block
    assert next_token == len(document_of)


def test_packed_rows_are_padded_only_where_less_than_8_tokens_would_fit() -> None:
    documents = np.random.default_rng(0).geometric(1 / 60, 3000).tolist()
    found = examples.pack_blocks(shard([[n] for n in documents]), 128)
    padding = 128 - examples.used_lengths(found)
    assert padding[:-1].max() == 9  # [CLS], 7 tokens, [SEP]
    assert padding.mean() < 1
