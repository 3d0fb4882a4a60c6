"""Packings as folders over one token store; test_examples.py has what is in their rows."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from electra_dist.data import packing, store
from electra_dist.data.info import corpus_info
from electra_dist.data.info_text import render_info
from electra_dist.data.packing import pack
from electra_dist.data.rows import RowReader
from electra_dist.data.store import PACKING_MODES, Corpus, Packing
from electra_dist.data.verify import verify_corpus
from electra_dist.errors import UserError
from electra_dist.runtime.progress import Progress
from tests.unit.data.conftest import LENGTH


@pytest.fixture
def copied(corpus: Corpus, tmp_path: Path) -> Corpus:
    """The corpus without packings, in several shards."""
    folder = tmp_path / "corpus"
    shutil.copytree(corpus.folder, folder, ignore=shutil.ignore_patterns("pack_*"))
    return Corpus.open(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("mode", PACKING_MODES)
def test_a_packing_has_the_same_bytes_for_any_number_of_workers(
    copied: Corpus, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Progress] = []
    folder = pack(copied.folder, LENGTH, mode, 2, report=told.append)
    alone = files_of(folder)
    shutil.rmtree(folder)
    monkeypatch.setattr(packing, "TOKENS_PER_PROCESS", 1)
    assert pack(copied.folder, LENGTH, mode, 2, num_workers=2) == folder
    assert files_of(folder) == alone
    assert len(alone) > 5
    assert verify_corpus(copied.folder) == []
    # Progress rises to the whole corpus, a shard at a time.
    splits = copied.manifest["splits"].values()
    done = [progress.num_bytes for progress in told]
    assert done == sorted(done)
    assert len(told) == sum(len(split["shards"]) for split in splits)
    assert done[-1] == told[-1].total_bytes
    assert told[-1].num_tokens == sum(split["tokens"] for split in splits)


def test_two_lengths_share_the_tokens_of_one_store(copied: Corpus) -> None:
    """A run of two phases, short rows and then long ones, tokenizes its text once."""
    before = files_of(copied.folder)
    texts = []
    for length, mode in ((32, "full"), (128, "full"), (32, "packed"), (128, "packed")):
        pack(copied.folder, length, mode)
        opened = Packing.open(copied, length, mode)
        reader = RowReader(copied, opened, "train")
        assert reader.num_rows == opened.num_examples
        ids = reader.read(np.arange(reader.num_rows)).input_ids_BL
        special = copied.special_ids
        texts.append(ids[~np.isin(ids, [special.cls, special.sep, special.pad])])
        assert ids.shape[1] == length
    assert files_of(copied.folder) == before
    for tokens in texts:  # the same text, whatever it was cut into
        np.testing.assert_array_equal(tokens, np.concatenate(copied.token_shards("train")))
    assert len({path.name for path in copied.folder.glob("pack_*")}) == 4


def test_info_says_how_full_packed_rows_are(corpus: Corpus) -> None:
    opened = Packing.open(corpus, LENGTH, "packed")
    reader = RowReader(corpus, opened, "train")
    rows = reader.read(np.arange(reader.num_rows))
    assert rows.block_ids_BL is not None
    info = {pack["mode"]: pack for pack in corpus_info(corpus.folder)["packings"]}
    blocks, fill = rows.block_ids_BL.max(axis=1).mean(), (rows.block_ids_BL > 0).mean()
    assert info["packed"]["mean_blocks"] == pytest.approx(blocks)
    assert info["packed"]["fill_share"] == pytest.approx(fill)
    assert info["packed"]["two_segment_share"] == 0
    assert info["packed"]["short_sequence_share"] == pytest.approx(
        np.mean(rows.num_tokens_B < LENGTH)
    )
    assert info["packed"]["fill_share"] > info["full"]["fill_share"]
    text = render_info(corpus_info(corpus.folder))
    assert f"{blocks:.2f} documents or parts of one a row, {100 * fill:.1f} % of" in text
    assert "% with two segments" in text


def rewritten(corpus: Path, **changes: Any) -> None:
    """Replaces arrays of the first file of packed rows; the manifest agrees with the new file."""
    folder = corpus / f"pack_{LENGTH}_packed"
    manifest = json.loads((folder / "manifest.json").read_text())
    record = manifest["files"][0]
    arrays = {n: a.copy() for n, a in store.read_arrays(folder / record["file"]).items()}
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    written = store.write_arrays(folder / record["file"], arrays)
    record |= {"bytes": written.bytes, "xxh3_128": written.xxh3_128}
    store.write_json(folder / "manifest.json", manifest)


def moved(index: int, by: int) -> Any:
    def change(array: store.Array) -> store.Array:
        array[index] = int(array[index]) + by
        return array

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": moved(3, 1)}, "does not start where"),
        ({"block_offsets": moved(0, 1)}, "blocks are missing"),
        ({"block_offsets": lambda a: a[:-1]}, "blocks are missing"),
        ({"block_lengths": lambda a: a[:-1]}, "blocks are missing"),
        ({"block_lengths": moved(0, 40)}, "a row is longer than 32"),
        ({"block_lengths": moved(-1, -1)}, "tokens are left out"),
        ({"start": lambda a: a[:-1]}, "examples, recorded"),
    ],
)
def test_verify_looks_into_packed_rows(
    corpus: Corpus, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    copy = shutil.copytree(corpus.folder, tmp_path / "corpus")
    rewritten(copy, **changes)
    problems = verify_corpus(copy)
    assert any(message in problem for problem in problems), problems
    assert all("pack_32_packed/examples_00000" in problem for problem in problems)


def test_verify_finds_a_block_that_reaches_over_a_documents_end(
    corpus: Corpus, tmp_path: Path
) -> None:
    copy = shutil.copytree(corpus.folder, tmp_path / "corpus")
    examples = Packing.open(corpus, LENGTH, "packed").packed_examples("train")[0]
    row = int(np.flatnonzero(np.diff(examples.block_offsets) > 1)[0])
    block = int(examples.block_offsets[row])

    def shifted(lengths: store.Array) -> store.Array:
        """One token more in a block and one less in the next of that row."""
        lengths[block : block + 2] += np.array([1, -1]).astype(np.uint16)
        return lengths

    rewritten(copy, block_lengths=shifted)
    (problem,) = verify_corpus(copy)
    assert "reaches over a document's end" in problem


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize(
    "name", ["tokens_00001.safetensors", "pack_32_packed/examples_00000.safetensors"]
)
def test_a_damaged_file_is_named_once(
    corpus: Corpus, tmp_path: Path, name: str, damage: str
) -> None:
    copy = shutil.copytree(corpus.folder, tmp_path / "corpus")
    data = bytearray((copy / name).read_bytes())
    data[-3] ^= 1
    (copy / name).unlink()
    if damage != "remove":
        (copy / name).write_bytes(data if damage == "flip" else data[:-5])
    (problem,) = verify_corpus(copy)
    assert name in problem


def test_no_worker_is_no_packing(copied: Corpus) -> None:
    with pytest.raises(UserError, match="--workers 0"):
        pack(copied.folder, LENGTH, num_workers=0)
