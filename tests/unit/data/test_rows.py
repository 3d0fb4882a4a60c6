import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.data.rows import RowReader, Rows, assemble
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
    rows = assemble(np.array(tokens, np.uint16), *columns, length, SPECIAL)
    check(rows, [one_row(tokens, *cut, length, SPECIAL) for cut in cuts])


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_row_of_the_corpus_is_read(corpus: Corpus, packing: Packing, split: str) -> None:
    reader = RowReader(corpus, packing, split)
    expected = every_row(corpus, packing, split)
    assert len(expected) == reader.num_rows
    check(reader.read(np.arange(reader.num_rows)), expected)
    shares = np.mean([1 in types for _, types, _ in expected])
    assert 0.3 < shares < 1.0  # both kinds of rows are here, else this test shows little


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_rows_come_in_the_order_asked_for_across_shards(
    corpus: Corpus, data: st.DataObject
) -> None:
    packing = Packing.open(corpus, LENGTH, "full")
    reader = RowReader(corpus, packing, "train")
    assert len(corpus.token_shards("train")) > 3
    ids = data.draw(st.lists(st.integers(0, reader.num_rows - 1), min_size=1, max_size=12))
    whole = reader.read(np.arange(reader.num_rows))
    for all_rows, some_rows in zip(whole[:3], reader.read(np.array(ids))[:3], strict=True):
        np.testing.assert_array_equal(all_rows[ids], some_rows)
