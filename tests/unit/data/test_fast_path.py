"""Compiled rows and masks beside numpy's, which are the contract: the same bits, or none."""

import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.data import masking, rows
from electra_dist.data.fast_path import FastPath
from electra_dist.data.masking import MaskRule, mask_rows
from electra_dist.data.rows import RowReader, Rows
from electra_dist.data.store import Corpus, Packing
from tests.unit.data.conftest import LENGTH

CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def compiled() -> FastPath:
    pytest.importorskip("numba")
    switch = FastPath()
    assert switch.load()
    return switch


@pytest.fixture
def both(compiled: FastPath) -> Iterator[tuple[FastPath, FastPath]]:
    """Numpy and machine code; nothing of either stays on behind the test."""
    numpy_only = FastPath()
    numpy_only.off()
    yield numpy_only, compiled
    assert compiled.is_on(0), "a kernel failed, and numpy's result was compared with itself"


def use(patch: pytest.MonkeyPatch, switch: FastPath) -> None:
    for module in (masking, rows):
        patch.setattr(module, "fast_path", switch)


def assert_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    for first, second in zip(one, other, strict=True):
        if first is None:
            assert second is None
            continue
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)


@st.composite
def batches(
    draw: st.DrawFn, dtype: type[np.unsignedinteger]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, MaskRule]:
    length = draw(st.integers(1, 300))
    seed = draw(st.integers(0, 2**64 - 1))
    rng = np.random.default_rng(seed)
    # Of few kinds of tokens many are never selected: rows with fewer candidates than slots.
    ids = rng.integers(0, draw(st.sampled_from([6, 60_000])), (draw(st.integers(1, 9)), length))
    rule = MaskRule(
        seed=seed,
        mask_prob=draw(st.floats(0.01, 0.99)),
        max_masked=draw(st.integers(1, 310)),
        mask_id=MASK,
        never=draw(st.sampled_from([(CLS, SEP, MASK), (CLS, SEP, MASK, 70_000), ()])),
        # Rules without a kernel: numpy's are then the only ones.
        with_replacement=draw(st.sampled_from([False, False, True])),
        mask_prob_end=draw(st.sampled_from([None, None, 0.4])),
    )
    start = draw(st.integers(0, 2**62))
    num_tokens = rng.integers(0, length + 1, len(ids))
    return ids.astype(dtype), num_tokens, rng.integers(0, start + 1, len(ids)), rule


@pytest.mark.parametrize(
    "dtype",
    [np.uint16, pytest.param(np.uint32, marks=pytest.mark.slow)],  # each is compiled
)
def test_masks_are_numpys(both: tuple[FastPath, FastPath], dtype: type[np.unsignedinteger]) -> None:
    @given(batches(dtype))
    @settings(max_examples=300, deadline=None)
    def check(case: tuple[np.ndarray, np.ndarray, np.ndarray, MaskRule]) -> None:
        results = []
        for switch in both:
            with pytest.MonkeyPatch.context() as patch:
                use(patch, switch)
                results.append(mask_rows(*case))
        assert_same(*results)

    check()


@pytest.mark.parametrize("masking_name", ["token", "whole_word", "span"])
@pytest.mark.parametrize("mode", ["full", "packed"])
def test_rows_of_a_corpus_are_numpys_in_any_order_and_repeated(
    both: tuple[FastPath, FastPath],
    corpus: Corpus,
    mode: str,
    masking_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packing = Packing.open(corpus, LENGTH, mode)
    word_starts = masking_name == "whole_word"
    reader = RowReader(corpus, packing, "train", word_starts=word_starts)
    special = corpus.special_ids
    rule = MaskRule(
        seed=5,
        mask_prob=0.15,
        max_masked=5,
        mask_id=special.mask,
        never=(special.cls, special.sep, special.mask),
        masking=masking_name,
    )
    every = np.arange(reader.num_rows)
    rng = np.random.default_rng(3)
    for ids in (every, rng.permutation(every), rng.choice(every, 500), every[:1]):
        results = []
        for switch in both:
            use(monkeypatch, switch)
            read = reader.read(ids)
            masks = mask_rows(read.input_ids_BL, read.num_tokens_B, ids, rule, read.word_start_BL)
            results.append((*read, *masks))
        assert_same(*results)


def kernel_rows(compiled: FastPath, start: int, a: int, b: int) -> Rows | None:
    made = Rows(np.zeros((1, 12), np.uint16), np.zeros((1, 12), np.uint8), np.zeros(1, np.int64))
    columns = (np.array([number]) for number in (start, a, b, 0))
    special = np.array([CLS, SEP, 0], np.uint32)
    tokens = np.arange(5, 25, dtype=np.uint16)
    return made if compiled.run("assemble", tokens, *columns, special, *made[:3]) else None


def test_a_row_that_reaches_outside_of_its_shard_is_left_to_numpy(compiled: FastPath) -> None:
    assert kernel_rows(compiled, 11, 4, 5) is not None
    for start, a, b in ((12, 4, 5), (-1, 4, 5), (0, 6, 5), (0, 11, 0), (3, -1, 2)):
        assert kernel_rows(compiled, start, a, b) is None


def test_numpy_makes_the_first_rows_and_all_where_numba_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "electra_dist.data.compiled", None)  # its import fails
    switch = FastPath(rows_before=100)
    with caplog.at_level(logging.INFO):
        assert not switch.is_on(100)
        assert not caplog.records
        assert not switch.is_on(1)
        assert not switch.is_on(1)
    assert len(caplog.records) == 1
    assert "numpy makes the rows" in caplog.text


def test_a_kernel_that_fails_is_warned_of_once_and_never_called_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("numba")
    switch = FastPath(rows_before=0)
    assert switch.is_on(1)
    assert not switch.run("mask", "no array")
    assert not switch.is_on(10**9)
    assert not switch.run("mask", "no array")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
