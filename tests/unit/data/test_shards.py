from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_hexdigest

from electra_dist.data.shards import ShardWriter
from electra_dist.data.store import read_arrays
from electra_dist.data.tokenize import EncodedDocuments, WordStartRule, pack_word_starts

RULE = WordStartRule(table=np.array([True, False] * 50), of_previous_token=False)
DOCUMENTS = st.lists(
    st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans()), max_size=40
)


def encoded(documents: list[tuple[list[int], bool]], first_token: int) -> EncodedDocuments:
    lengths = [length for document, _ in documents for length in document]
    return EncodedDocuments(
        tokens=(np.arange(first_token, first_token + sum(lengths)) % 100).astype(np.uint16),
        sentence_lengths=np.array(lengths, np.uint32),
        document_lengths=np.array([len(document) for document, _ in documents], np.uint32),
        text_hashes=np.zeros((len(documents), 2), np.uint64),
    )


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(DOCUMENTS, st.integers(1, 60), st.integers(1, 10))
def test_shards_are_filled_in_order_whatever_the_chunks(
    tmp_path: Path, documents: list[tuple[list[int], bool]], max_tokens: int, chunk_size: int
) -> None:
    writer = ShardWriter(tmp_path, "tokens", 100, RULE, max_tokens)
    expected: list[list[list[int]]] = []
    position = 0
    for start in range(0, len(documents), chunk_size):
        chunk = encoded(documents[start : start + chunk_size], position)
        writer.add(
            chunk, np.array([not held_out for _, held_out in documents[start:][:chunk_size]])
        )
        for document, held_out in documents[start : start + chunk_size]:
            bounds = np.cumsum([position, *document]).tolist()
            position = bounds[-1]
            if not held_out:
                expected.append([[i % 100 for i in range(a, b)] for a, b in pairwise(bounds)])
    writer.close()

    # The naive way: a new shard whenever the next document would not fit.
    shards: list[list[list[list[int]]]] = []
    for document_tokens in expected:
        size = sum(map(len, document_tokens))
        if not shards or sum(len(s) for d in shards[-1] for s in d) + size > max_tokens:
            shards.append([])
        shards[-1].append(document_tokens)

    records = writer.summary()["shards"]
    assert len(records) == len(shards)
    for record, shard in zip(records, shards, strict=True):
        arrays = read_arrays(tmp_path / record["file"])
        sentences = [sentence for document in shard for sentence in document]
        tokens = [token for sentence in sentences for token in sentence]
        assert arrays["tokens"].tolist() == tokens
        assert np.diff(arrays["sentence_offsets"]).tolist() == [len(s) for s in sentences]
        assert np.diff(arrays["document_offsets"]).tolist() == [len(d) for d in shard]
        starts = np.unpackbits(arrays["word_starts"], bitorder="little", count=len(tokens))
        firsts = set(arrays["sentence_offsets"].tolist())
        assert starts.tolist() == [i in firsts or t % 2 == 0 for i, t in enumerate(tokens)]
    kept = [token for shard in shards for document in shard for s in document for token in s]
    assert writer.unigram_counts.tolist() == np.bincount(kept, minlength=100).tolist()


@pytest.mark.parametrize("of_previous_token", [False, True])
def test_a_shard_is_what_the_safetensors_library_writes(
    tmp_path: Path, of_previous_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks are small here, so that word starts and offsets cross them."""
    monkeypatch.setattr("electra_dist.data.spool._BLOCK_BYTES", 32)
    rng = np.random.default_rng(0)
    sentence_lengths = rng.integers(1, 12, 200).astype(np.uint32)
    tokens = rng.integers(0, 100, int(sentence_lengths.sum())).astype(np.uint16)
    documents = EncodedDocuments(
        tokens=tokens,
        sentence_lengths=sentence_lengths,
        document_lengths=np.full(100, 2, np.uint32),
        text_hashes=np.zeros((100, 2), np.uint64),
    )
    rule = WordStartRule(table=rng.random(100) < 0.5, of_previous_token=of_previous_token)
    writer = ShardWriter(tmp_path, "tokens", 100, rule, 10**6)
    writer.add(documents, np.ones(100, np.bool_))
    writer.close()

    sentence_offsets = np.concatenate([[0], np.cumsum(sentence_lengths, dtype=np.int64)])
    arrays = {
        "tokens": tokens,
        "sentence_offsets": sentence_offsets,
        "document_offsets": np.arange(0, 201, 2, dtype=np.int64),
        "word_starts": pack_word_starts(rule, tokens, sentence_offsets),
    }
    [record] = writer.summary()["shards"]
    written = (tmp_path / record["file"]).read_bytes()
    assert written == safetensors.numpy.save(arrays)
    assert (record["bytes"], record["xxh3_128"]) == (len(written), xxh3_128_hexdigest(written))
    assert [path.name for path in tmp_path.iterdir()] == [record["file"]]
