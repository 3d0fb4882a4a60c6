import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.data import packing
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


def short_sentences(num_documents: int, num_sentences: int = 400) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return rng.integers(5, 16, (num_documents, num_sentences)).tolist()


@settings(max_examples=300, deadline=None)
@given(SENTENCES, st.integers(5, 300), st.integers(0, 1000))
def test_full_mode_tiles_every_document_in_order(
    lengths: list[int], length: int, seed: int
) -> None:
    examples = packing.pack_document(lengths, length, "full", np.random.default_rng(seed))
    position = 0
    for start, length_a, length_b in examples:
        assert start == position
        assert length_a >= 1
        assert length_b >= 0
        assert length_a + length_b + (3 if length_b else 2) <= length
        position += length_a + length_b
    assert position == sum(lengths)


@settings(max_examples=300, deadline=None)
@given(SENTENCES, st.integers(5, 300), st.integers(0, 1000))
def test_google_mode_starts_at_sentences_and_drops_only_what_was_cut_off(
    lengths: list[int], length: int, seed: int
) -> None:
    examples = packing.pack_document(lengths, length, "google", np.random.default_rng(seed))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    ends = [start for start, _, _ in examples[1:]] + [offsets[-1]]
    assert examples[0][0] == 0
    for (start, length_a, length_b), end in zip(examples, ends, strict=True):
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


@settings(max_examples=500, deadline=None)
@given(SENTENCES, st.integers(5, 300), st.data())
def test_segments_are_those_of_the_rules_on_tokens(
    pieces: list[int], length: int, data: st.DataObject
) -> None:
    target = data.draw(st.integers(5, length))
    seed = data.draw(st.integers(0, 10000))
    found = packing.split_segments(pieces, target, length, np.random.default_rng(seed))
    assert found == oracle_split(pieces, target, length, np.random.default_rng(seed))


def test_one_example_in_ten_is_a_single_segment() -> None:
    rng = np.random.default_rng(0)
    pieces = [10] * 13
    shares = [packing.split_segments(pieces, 128, 128, rng)[1] == 0 for _ in range(40000)]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.006)


def test_a_fair_coin_decides_whether_a_sentence_may_overshoot_the_first_segment() -> None:
    rng = np.random.default_rng(0)
    # A aims at 62: 50 fit, the second piece would overshoot, the third comes after.
    found = [packing.split_segments([50, 30, 60], 128, 128, rng) for _ in range(40000)]
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
        pieces: list[int], target: int, length: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        targets.append(target)
        return oracle_split(pieces, target, length, rng)

    monkeypatch.setattr(packing, "split_segments", split)
    documents = short_sentences(4000 // num_sentences * 5, num_sentences)
    packing.pack_shard(shard(documents), (0, 0, 0), 64, mode)
    short = np.array(targets) < 64
    # Uniform in [5, 64] is 64 itself once in 60.
    expected = 0.05 * 59 / 60
    assert np.mean(short) == pytest.approx(expected, abs=4 * np.sqrt(0.05 / len(targets)))
    assert min(targets) >= 5
    assert np.array(targets)[short].mean() == pytest.approx(34, abs=7)


@pytest.mark.parametrize("mode", ["full", "google"])
def test_nine_in_ten_examples_have_two_segments_in_long_documents(mode: str) -> None:
    examples = packing.pack_shard(shard(short_sentences(60)), (0, 0, 0), 128, mode)
    assert np.mean(examples.length_b > 0) == pytest.approx(0.89, abs=0.02)


def rows(documents: list[list[int]], key: tuple[int, int, int]) -> Array:
    examples = packing.pack_shard(shard(documents), key, 64, "full")
    return np.stack([examples.start, examples.length_a, examples.length_b], axis=1)


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
