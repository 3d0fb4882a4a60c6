import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from electra_dist.data.rows import (
    NUM_BEFORE,
    RowReader,
    Rows,
    all_windows,
    assemble,
    assemble_blocks,
    windows,
)
from electra_dist.data.store import Corpus, Packing, SpecialIds
from tests.unit.data.conftest import LENGTH

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)


def one_row(
    tokens: list[int], start: int, length_a: int, length_b: int, length: int, special: SpecialIds
) -> tuple[list[int], list[int], int]:
    """[CLS] A [SEP] B [SEP], one token after the other."""
    ids, types = [special.cls], [0]
    for token in tokens[start : start + length_a]:
        ids.append(token)
        types.append(0)
    ids.append(special.sep)
    types.append(0)
    if length_b:
        for token in tokens[start + length_a : start + length_a + length_b]:
            ids.append(token)
            types.append(1)
        ids.append(special.sep)
        types.append(1)
    num_tokens = len(ids)
    ids += [special.pad] * (length - num_tokens)
    types += [0] * (length - num_tokens)
    return ids, types, num_tokens


def check(rows: Rows, expected: list[tuple[list[int], list[int], int]]) -> None:
    assert rows.input_ids_BL.tolist() == [ids for ids, _, _ in expected]
    assert rows.token_type_ids_BL.tolist() == [types for _, types, _ in expected]
    assert rows.num_tokens_B.tolist() == [number for _, _, number in expected]


def every_row(
    corpus: Corpus, packing: Packing, split: str
) -> list[tuple[list[int], list[int], int]]:
    return [
        one_row(tokens.tolist(), int(start), int(a), int(b), LENGTH, corpus.special_ids)
        for tokens, examples in zip(
            corpus.token_shards(split), packing.examples(split), strict=True
        )
        for start, a, b in zip(examples.start, examples.length_a, examples.length_b, strict=True)
    ]


@st.composite
def examples(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int, int]], int]:
    length = draw(st.integers(5, 20))
    num_stored = draw(st.integers(length, 60))
    tokens = draw(st.lists(st.integers(5, 99), min_size=num_stored, max_size=num_stored))
    cuts = []
    for _ in range(draw(st.integers(1, 5))):
        length_a = draw(st.integers(1, length - 2))
        longest_b = max(0, length - length_a - 3)
        length_b = draw(st.integers(0, min(longest_b, num_stored - length_a)))
        # Up to the last token of the shard: nothing beyond it may be read.
        cuts.append((draw(st.integers(0, num_stored - length_a - length_b)), length_a, length_b))
    return tokens, cuts, length


@given(examples())
@settings(max_examples=100, deadline=None)
def test_a_batch_equals_rows_made_token_by_token(
    case: tuple[list[int], list[tuple[int, int, int]], int],
) -> None:
    tokens, cuts, length = case
    columns = [np.array(column, np.int64) for column in zip(*cuts, strict=True)]
    start_B, *lengths = columns
    store = np.array(tokens, np.uint16)
    read = windows(store, all_windows(store, length + 1), start_B - NUM_BEFORE)
    rows = assemble(read, *lengths, SPECIAL)
    check(rows, [one_row(tokens, *cut, length, SPECIAL) for cut in cuts])


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_row_of_the_corpus_is_read(corpus: Corpus, packing: Packing, split: str) -> None:
    reader = RowReader(corpus, packing, split)
    expected = every_row(corpus, packing, split)
    assert len(expected) == reader.num_rows
    check(reader.read(np.arange(reader.num_rows)), expected)
    shares = np.mean([1 in types for _, types, _ in expected])
    assert 0.3 < shares < 1.0  # both kinds of rows are here, else this test shows little


def one_packed_row(
    tokens: list[int], start: int, blocks: list[int], length: int, special: SpecialIds
) -> tuple[list[int], list[int], list[int]]:
    """[CLS] block [SEP] ..., with block ids and positions, one token after the other."""
    ids, block_ids, positions = [], [], []
    for number, block in enumerate(blocks, start=1):
        row = [special.cls, *tokens[start : start + block], special.sep]
        start += block
        ids += row
        block_ids += [number] * len(row)
        positions += range(len(row))
    padding = [0] * (length - len(ids))
    return ids + [special.pad] * len(padding), block_ids + padding, positions + padding


def check_packed(rows: Rows, expected: list[tuple[list[int], list[int], list[int]]]) -> None:
    assert rows.block_ids_BL is not None
    assert rows.position_ids_BL is not None
    assert rows.input_ids_BL.tolist() == [ids for ids, _, _ in expected]
    assert rows.block_ids_BL.tolist() == [blocks for _, blocks, _ in expected]
    assert rows.position_ids_BL.tolist() == [positions for _, _, positions in expected]
    assert rows.num_tokens_B.tolist() == [sum(b > 0 for b in blocks) for _, blocks, _ in expected]
    assert not rows.token_type_ids_BL.any()
    assert (rows.input_ids_BL.dtype, rows.token_type_ids_BL.dtype) == (np.uint16, np.uint8)
    assert (rows.block_ids_BL.dtype, rows.position_ids_BL.dtype) == (np.int16, np.int32)


def every_packed_row(
    corpus: Corpus, packing: Packing, split: str
) -> list[tuple[list[int], list[int], list[int]]]:
    rows = []
    for tokens, examples in zip(
        corpus.token_shards(split), packing.packed_examples(split), strict=True
    ):
        blocks = np.split(examples.block_lengths, examples.block_offsets[1:-1])
        for start, row in zip(examples.start, blocks, strict=True):
            lengths = row.astype(int).tolist()
            rows.append(
                one_packed_row(tokens.tolist(), int(start), lengths, LENGTH, corpus.special_ids)
            )
    return rows


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_packed_batch_equals_rows_made_token_by_token(data: st.DataObject) -> None:
    length = data.draw(st.integers(3, 30))
    tokens = data.draw(st.lists(st.integers(5, 99), min_size=length, max_size=60))
    cuts: list[tuple[int, list[int]]] = []
    for _ in range(data.draw(st.integers(1, 5))):
        blocks = [data.draw(st.integers(1, length - 2))]
        while (room := length - sum(blocks) - 2 * len(blocks) - 2) >= 1 and data.draw(
            st.booleans()
        ):
            blocks.append(data.draw(st.integers(1, room)))
        cuts.append((data.draw(st.integers(0, len(tokens) - sum(blocks))), blocks))
    first_B = np.array([start for start, _ in cuts]) - NUM_BEFORE
    store = np.array(tokens, np.uint16)
    rows = assemble_blocks(
        windows(store, all_windows(store, length + 1), first_B),
        np.array([len(blocks) for _, blocks in cuts]),
        np.array([block for _, blocks in cuts for block in blocks]),
        SPECIAL,
    )
    check_packed(rows, [one_packed_row(tokens, *cut, length, SPECIAL) for cut in cuts])


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_packed_row_of_the_corpus_is_read(corpus: Corpus, split: str) -> None:
    packing = Packing.open(corpus, LENGTH, "packed")
    reader = RowReader(corpus, packing, split)
    expected = every_packed_row(corpus, packing, split)
    assert len(expected) == reader.num_rows
    # All rows at once, which lie in several shards, and in another order than on disk.
    order = np.random.default_rng(0).permutation(reader.num_rows)
    check_packed(reader.read(order), [expected[i] for i in order])
    assert max(max(blocks) for _, blocks, _ in expected) > 2


@pytest.mark.parametrize("mode", ["full", "packed"])
def test_word_starts_are_those_of_the_tokenizer(corpus: Corpus, mode: str) -> None:
    packing = Packing.open(corpus, LENGTH, mode)
    rows = RowReader(corpus, packing, "train", word_starts=True).read(np.arange(80))
    assert rows.word_start_BL is not None
    special = corpus.special_ids
    entry = Tokenizer.from_file(str(corpus.tokenizer_path)).id_to_token
    inner = 0
    for ids, starts in zip(rows.input_ids_BL.tolist(), rows.word_start_BL.tolist(), strict=True):
        for token, start in zip(ids, starts, strict=True):
            if token not in (special.cls, special.sep, special.pad):
                assert start == (not entry(token).startswith("##"))
                inner += not start
    assert inner > 100
    assert RowReader(corpus, packing, "train").read(np.arange(9)).word_start_BL is None


@pytest.mark.parametrize("mode", ["full", "packed"])
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_rows_come_in_the_order_asked_for_across_shards(
    corpus: Corpus, mode: str, data: st.DataObject
) -> None:
    packing = Packing.open(corpus, LENGTH, mode)
    reader = RowReader(corpus, packing, "train", word_starts=True)
    assert len(corpus.token_shards("train")) > 3
    ids = data.draw(st.lists(st.integers(0, reader.num_rows - 1), min_size=1, max_size=12))
    whole = reader.read(np.arange(reader.num_rows))
    for all_rows, some_rows in zip(whole, reader.read(np.array(ids)), strict=True):
        if all_rows is None:
            assert some_rows is None
        else:
            np.testing.assert_array_equal(all_rows[ids], some_rows)
            assert all_rows.dtype == some_rows.dtype
