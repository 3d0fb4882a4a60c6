import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.data import near_duplicates
from electra_dist.data.near_duplicates import (
    NUM_HASHES,
    SHINGLE_TOKENS,
    NearDuplicateIndex,
    rows_per_band,
    signatures,
)
from electra_dist.data.store import Array
from electra_dist.data.tokenize import EncodedDocuments
from electra_dist.errors import UserError

pytest.importorskip("rensa")


def encoded(documents: list[list[int]]) -> EncodedDocuments:
    """Documents of one or two sentences."""
    sentences = [part for d in documents for part in (d[:2], d[2:]) if part]
    return EncodedDocuments(
        tokens=np.array([token for d in documents for token in d], np.uint16),
        sentence_lengths=np.array([len(s) for s in sentences], np.uint32),
        document_lengths=np.array([1 + (len(d) > 2) for d in documents], np.uint32),
        text_hashes=np.zeros((len(documents), 2), np.uint64),
    )


def shingles(document: list[int]) -> set[tuple[int, ...]]:
    starts = range(max(1, len(document) - SHINGLE_TOKENS + 1))
    return {tuple(document[i : i + SHINGLE_TOKENS]) for i in starts}


def jaccard(one: list[int], other: list[int]) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def varied(document: list[int], num_changes: int, rng: np.random.Generator) -> list[int]:
    other = list(document)
    for place in rng.integers(0, len(other), num_changes):
        other[place] = int(rng.integers(1000, 60000))
    return other


def test_signatures_estimate_the_similarity_of_the_documents() -> None:
    rng = np.random.default_rng(0)
    for num_changes in (0, 2, 10, 40):
        document = rng.integers(0, 1000, 400).tolist()
        other = varied(document, num_changes, rng)
        one, two = signatures(encoded([document, other]))
        # The standard error of 128 draws is at most 0.044.
        assert abs((one == two).mean() - jaccard(document, other)) < 0.15


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=10))
def test_a_signature_depends_on_its_document_alone(documents: list[list[int]]) -> None:
    together = signatures(encoded(documents))
    assert together.shape == (len(documents), NUM_HASHES)
    for document, signature in zip(documents, together, strict=True):
        np.testing.assert_array_equal(signatures(encoded([document]))[0], signature)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_find_nine_of_ten_pairs_at_the_threshold(threshold: float) -> None:
    rows = rows_per_band(threshold)
    assert NUM_HASHES % rows == 0
    assert 1 - (1 - threshold**rows) ** (NUM_HASHES // rows) >= 0.9


def find(documents: list[list[int]], folder: Path, left_out: Array | None = None) -> list[int]:
    index = NearDuplicateIndex(folder, 0.8)
    for start in range(0, len(documents), 7):  # in several parts, as in a build
        index.add(signatures(encoded(documents[start : start + 7])))
    out = np.zeros(len(documents), np.bool_) if left_out is None else left_out
    return np.flatnonzero(index.find(out)).tolist()


def test_near_duplicates_are_found_and_others_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    documents = [rng.integers(0, 1000, 300).tolist() for _ in range(60)]
    near = [varied(document, 2, rng) for document in documents[:20]]  # similarity 0.94
    far = [varied(document, 60, rng) for document in documents[20:40]]  # similarity 0.2
    assert find(documents + far + near, tmp_path) == list(range(80, 100))
    assert list(tmp_path.iterdir()) == []


def test_documents_that_are_left_out_already_are_not_looked_at(tmp_path: Path) -> None:
    document = list(range(100))
    left_out = np.array([False, True, False])
    assert find([document] * 3, tmp_path, left_out) == [2]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UserError, match=r"pip install electra_dist\[dedup\]"):
        near_duplicates.require_library()
