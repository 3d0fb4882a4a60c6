import shutil
from pathlib import Path

import numpy as np
import pytest

from electra_dist.data.build import build_corpus
from electra_dist.data.build_options import BuildOptions, SourceSpec
from electra_dist.data.frozen import freeze, read_frozen
from electra_dist.data.masking import num_selected
from electra_dist.data.packing import pack
from electra_dist.data.rows import RowReader
from electra_dist.data.store import Array, Corpus, Packing
from electra_dist.errors import UserError
from tests.unit.data.conftest import LENGTH, write_documents


def frozen_arrays(packing: Packing, mask_prob: float = 0.15) -> dict[str, Array]:
    arrays = read_frozen(packing, mask_prob)
    assert arrays is not None
    return arrays


def copied(corpus: Corpus, target: Path) -> tuple[Corpus, Packing]:
    shutil.copytree(corpus.folder, target)
    copy = Corpus.open(target)
    return copy, Packing.open(copy, LENGTH, "full")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_recorded_rows_are_the_held_out_ones(corpus: Corpus, packing: Packing) -> None:
    frozen = frozen_arrays(packing)
    reader = RowReader(corpus, packing, "held_out")
    rows = reader.read(np.arange(reader.num_rows))
    assert reader.num_rows > 50
    names = (("input_ids", "input_ids_BL"), ("token_type_ids", "token_type_ids_BL"))
    for recorded, name in (*names, ("num_tokens", "num_tokens_B")):
        expected = [row.tobytes() for row in getattr(rows, name).astype(np.int64)]
        found = [row.tobytes() for row in frozen[recorded].astype(np.int64)]
        assert sorted(found) == sorted(expected)
        assert found != expected  # shuffled, so that the first 1000 are of all documents


def test_the_recorded_masks_are_valid(corpus: Corpus, packing: Packing) -> None:
    frozen, special = frozen_arrays(packing), corpus.special_ids
    counts = num_selected(frozen["num_tokens"], 0.15, 4)
    became_mask = num_used = 0
    for index, tokens in enumerate(frozen["input_ids"].tolist()):
        used = frozen["masked_weights"][index] > 0
        chosen = frozen["masked_positions"][index][used].tolist()
        assert len(set(chosen)) == len(chosen) == counts[index]
        assert max(chosen) < frozen["num_tokens"][index]
        assert not {tokens[place] for place in chosen} & {special.cls, special.sep, special.mask}
        masked = frozen["masked_ids"][index].tolist()
        changed = [place for place in range(LENGTH) if masked[place] != tokens[place]]
        assert set(changed) <= set(chosen)
        assert {masked[place] for place in changed} <= {special.mask}
        became_mask += len(changed)
        num_used += len(chosen)
    assert abs(became_mask / num_used - 0.85) < 0.08


def test_the_noise_is_uniform_and_the_unigram_samples_are_words_of_the_corpus(
    corpus: Corpus, packing: Packing
) -> None:
    frozen, special = frozen_arrays(packing), corpus.special_ids
    uniforms = frozen["uniforms"]
    assert uniforms.dtype == np.float32
    assert uniforms.min() >= 0.0
    assert uniforms.max() < 1.0
    assert abs(uniforms.mean() - 0.5) < 4 / np.sqrt(12 * uniforms.size)
    samples = frozen["unigram_ids"].ravel()
    counts = corpus.unigram_counts().astype(np.float64)
    assert (counts[samples] > 0).all()
    assert counts[special.unk] > 50
    never = [special.pad, special.unk, special.cls, special.sep, special.mask]
    assert not np.isin(samples, never).any()
    # As frequent as in the text: the mean surprise of the samples is the entropy of the words.
    counts[never] = 0.0
    words = np.flatnonzero(counts)
    probability = counts[words] / counts[words].sum()
    entropy = -(probability * np.log(probability)).sum()
    spread = np.sqrt((probability * np.log(probability) ** 2).sum() - entropy**2)
    surprise = -np.log(counts[samples] / counts[words].sum()).mean()
    assert abs(surprise - entropy) < 4 * spread / np.sqrt(samples.size)


def test_recording_again_gives_the_same_bytes(corpus: Corpus, tmp_path: Path) -> None:
    copy, packing = copied(corpus, tmp_path / "copy")
    before = files_of(packing.folder)
    assert freeze(copy, packing, 0.15) == packing.folder / "frozen_0.15.safetensors"
    assert files_of(packing.folder) == before


def test_two_mask_probabilities_stand_beside_each_other(corpus: Corpus, tmp_path: Path) -> None:
    copy, packing = copied(corpus, tmp_path / "copy")
    before = (packing.folder / "frozen_0.15.safetensors").read_bytes()
    # With the packing as it was opened before: its record of the manifest is an old one.
    for mask_prob in (0.25, 0.5, 0.15):
        freeze(copy, packing, mask_prob)
    assert (packing.folder / "frozen_0.15.safetensors").read_bytes() == before
    recorded = Packing.open(copy, LENGTH, "full").manifest["frozen"]
    assert sorted(record["mask_prob"] for record in recorded) == [0.15, 0.25, 0.5]
    quarter = frozen_arrays(packing, 0.25)
    assert (
        quarter["masked_weights"].sum(axis=1) == num_selected(quarter["num_tokens"], 0.25, 8)
    ).all()
    np.testing.assert_array_equal(quarter["input_ids"], frozen_arrays(packing)["input_ids"])


def test_another_mask_probability_is_refused_with_the_command_that_records_it(
    packing: Packing,
) -> None:
    with pytest.raises(
        UserError, match=r"mask_prob = 0\.3.*--length 32 --mode full --mask-prob 0\.3"
    ):
        read_frozen(packing, 0.3)


def test_a_corpus_without_held_out_rows_records_nothing(tmp_path: Path) -> None:
    text = write_documents(tmp_path / "text.txt", 12, seed=2)
    build_corpus(
        BuildOptions(
            sources=(SourceSpec(inputs=(str(text),)),),
            out=tmp_path / "corpus",
            vocab_size=120,
            held_out_share=0.0,
        )
    )
    pack(tmp_path / "corpus", LENGTH)
    corpus = Corpus.open(tmp_path / "corpus")
    packing = Packing.open(corpus, LENGTH, "full")
    before = files_of(packing.folder)
    assert freeze(corpus, packing, 0.15) is None
    assert read_frozen(packing, 0.15) is None
    assert files_of(packing.folder) == before
