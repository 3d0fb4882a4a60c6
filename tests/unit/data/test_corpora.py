from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from electra_dist.config.schema import BatchConfig, DataConfig, ObjectiveConfig, RunConfig
from electra_dist.data.build import build_corpus
from electra_dist.data.build_options import BuildOptions, SourceSpec
from electra_dist.data.corpora import Corpora
from electra_dist.data.frozen import freeze, read_frozen
from electra_dist.data.packing import pack
from electra_dist.data.rows import RowReader
from electra_dist.data.store import Corpus, Packing
from electra_dist.data.stream import CorpusStream
from electra_dist.errors import UserError
from tests.unit.data.conftest import LENGTH, write_documents


@pytest.fixture(scope="module")
def other(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A smaller corpus with the tokenizer of the first one."""
    folder = tmp_path_factory.mktemp("other")
    text = write_documents(folder / "text.txt", 90, seed=2)
    options = BuildOptions(
        sources=(SourceSpec(inputs=(str(text),)),),
        out=folder / "corpus",
        tokenizer=str(corpus.tokenizer_path),
        held_out_share=0.2,
    )
    build_corpus(options)
    pack(folder / "corpus", LENGTH)
    opened = Corpus.open(folder / "corpus")
    freeze(opened, Packing.open(opened, LENGTH), 0.15)
    return opened


def blend(*weighted: tuple[Corpus, int], num_lanes: int = 1) -> RunConfig:
    return RunConfig(
        seed=3,
        objective=ObjectiveConfig(mask_prob=0.15),
        data=DataConfig(
            blend={str(corpus.folder): weight for corpus, weight in weighted},
            sequence_length=LENGTH,
            shuffle_block_size=8,
            shuffle_window_blocks=4,
            num_lanes=num_lanes,
        ),
        batch=BatchConfig(global_batch_size=24, micro_batch_size=6),
    )


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_each_step_of_a_blend_reads_every_corpus_as_its_weight_says(
    corpus: Corpus, other: Corpus, num_lanes: int
) -> None:
    config = blend((corpus, 2), (other, 1), num_lanes=num_lanes)
    num_rows = Packing.open(corpus, LENGTH).num_examples
    readers = [RowReader(one, Packing.open(one, LENGTH), "train") for one in (corpus, other)]
    seen = set()
    with closing(CorpusStream(config, Corpora.open(config.data))) as stream:
        for step in range(40):
            for batch in stream.micro_batches(step, step * 24):
                ids = stream.sample_ids(stream.positions(batch.index, step * 24))
                seen.update(ids.tolist())
                assert (ids < num_rows).sum() == 4
                for one_id, row in zip(ids, batch.input_ids_BL, strict=True):
                    which = int(one_id >= num_rows)
                    alone = readers[which].read(np.array([one_id - which * num_rows]))
                    assert row.tolist() == alone.input_ids_BL[0].tolist()
    # 320 of the other's rows were read, which has fewer: all of them.
    num_others = Packing.open(other, LENGTH).num_examples
    assert num_others < 320
    assert len([one for one in seen if one >= num_rows]) == num_others


def test_a_blend_of_one_is_that_corpus(corpus: Corpus) -> None:
    config = blend((corpus, 7))
    plain = replace(config, data=replace(config.data, blend={}, corpus=str(corpus.folder)))
    assert Corpora.open(config.data).fingerprint == Corpora.open(plain.data).fingerprint
    with (
        closing(CorpusStream(config, Corpora.open(config.data))) as one,
        closing(CorpusStream(plain, corpus)) as same,
    ):
        assert one.micro_batch(0, 2, 96).checksum == same.micro_batch(0, 2, 96).checksum


def test_the_fingerprint_names_content_and_weights_but_no_place(
    corpus: Corpus, other: Corpus, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(other.folder)
    first = Corpora.open(blend((corpus, 2), (other, 1)).data).fingerprint
    assert Corpora.open(blend((corpus, 2), (Corpus.open(moved), 1)).data).fingerprint == first
    assert Corpora.open(blend((corpus, 1), (other, 1)).data).fingerprint != first
    assert Corpora.open(blend((other, 1), (corpus, 2)).data).fingerprint != first


def test_held_out_rows_of_a_blend_come_in_its_proportions(corpus: Corpus, other: Corpus) -> None:
    corpora = Corpora.open(blend((corpus, 1), (other, 2)).data)
    frozen = corpora.frozen(0.15, num_rows=30)
    parts = [read_frozen(packing, 0.15) for packing in corpora.packings]
    assert frozen is not None
    for name, rows in frozen.items():
        assert parts[0] is not None
        assert parts[1] is not None
        assert len(rows) == 30
        expected = [parts[1][name][0], parts[0][name][0], parts[1][name][1], parts[1][name][2]]
        np.testing.assert_array_equal(rows[:4], expected, err_msg=name)
    # All of both, once each, where more are asked for than there are.
    everything = corpora.frozen(0.15, num_rows=10**6)
    counts = [len(part["num_tokens"]) for part in parts if part is not None]
    assert everything is not None
    assert len(everything["num_tokens"]) == sum(counts)
    assert sorted(map(bytes, everything["input_ids"])) == sorted(
        bytes(row) for part in parts if part is not None for row in part["input_ids"]
    )


def test_unigram_counts_of_a_blend_are_those_of_what_is_read(corpus: Corpus, other: Corpus) -> None:
    corpora = Corpora.open(blend((corpus, 1), (other, 3)).data)
    shares = corpora.unigram_counts() / corpora.unigram_counts().sum()
    one, two = (c.unigram_counts() / c.unigram_counts().sum() for c in (corpus, other))
    np.testing.assert_allclose(shares, one / 4 + two * 3 / 4)


def test_corpora_that_do_not_go_together_are_refused_in_words(
    corpus: Corpus, other: Corpus, tmp_path: Path
) -> None:
    text = write_documents(tmp_path / "text.txt", 30, seed=3)
    build_corpus(
        BuildOptions(
            sources=(SourceSpec(inputs=(str(text),)),), out=tmp_path / "foreign", vocab_size=200
        )
    )
    foreign = Corpus.open(tmp_path / "foreign")
    with pytest.raises(UserError, match=r"foreign has another tokenizer than .*--tokenizer .*json"):
        Corpora.open(blend((corpus, 1), (foreign, 1)).data)
    with pytest.raises(UserError, match=r"data\.num_lanes = 5000 is more than the \d+ rows of"):
        Corpora.open(blend((corpus, 1), num_lanes=5000).data)
    longer = replace(blend((corpus, 1), (other, 1)).data, sequence_length=64)
    with pytest.raises(UserError, match=r"corpus pack .* --length 64 --mode full"):
        Corpora.open(longer)
    with pytest.raises(UserError, match=r"data\.corpus is not set"):
        Corpora.open(DataConfig())
