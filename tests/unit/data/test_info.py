import json
import random
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from electra_dist.data import info as info_module
from electra_dist.data import store
from electra_dist.data.build import build_corpus
from electra_dist.data.build_options import BuildOptions, SourceSpec
from electra_dist.data.info import corpus_info
from electra_dist.data.info_text import render_info
from electra_dist.data.packing import pack
from electra_dist.data.plot import check_plot, plot_corpus
from electra_dist.data.rows import RowReader
from electra_dist.data.store import Corpus, Packing, TokenShard
from electra_dist.errors import UserError


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources, several shards, duplicates, bad records, two packings; tests only read it."""
    folder = tmp_path_factory.mktemp("info")
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 5))) for _ in range(150)]
    weights = [1 / rank for rank in range(1, 151)]
    documents = [
        " ".join(rng.choices(words, weights, k=int(rng.lognormvariate(3, 1)) + 1))
        for _ in range(250)
    ]
    (folder / "a.txt").write_text("\n\n".join([*documents[:150], *documents[:10]]))
    records = [json.dumps({"text": text + "\u200b"}) for text in documents[150:]]
    (folder / "b.jsonl").write_text("\n".join([*records, "{", "[1]"]))
    build_corpus(
        BuildOptions(
            sources=(
                SourceSpec(inputs=(str(folder / "a.txt"),), license="CC0-1.0"),
                SourceSpec(inputs=(str(folder / "b.jsonl"),), kind="jsonl"),
            ),
            out=folder / "corpus",
            vocab_size=200,
            held_out_share=0.1,
            max_quarantine_share=0.5,
            shard_tokens=1500,
        )
    )
    pack(folder / "corpus", 32)
    pack(folder / "corpus", 64, "google")
    return folder / "corpus"


def all_lengths(corpus: Corpus, split: str) -> NDArray[np.int64]:
    shards = corpus.shards(split)
    return np.concatenate([np.diff(s.sentence_offsets[s.document_offsets]) for s in shards])


def test_lengths_are_those_of_the_documents(built: Path) -> None:
    corpus = Corpus.open(built)
    for split, entry in corpus_info(built)["splits"].items():
        lengths = all_lengths(corpus, split)
        assert entry["shards"] > (split == "train")
        assert entry["mean_document_tokens"] == pytest.approx(lengths.mean())
        assert entry["median_document_tokens"] == np.median(lengths)
        bins = entry["document_lengths"]
        for one in bins:
            inside = lengths[(lengths >= one["min_tokens"]) & (lengths <= one["max_tokens"])]
            assert (len(inside), inside.sum()) == (one["documents"], one["tokens"])
        assert sum(one["documents"] for one in bins) == len(lengths)


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=40),
    num_shards=st.integers(1, 3),
)
def test_the_length_of_a_rank_is_exact_over_shards(lengths: list[int], num_shards: int) -> None:
    shards = []
    for part in np.array_split(np.array(lengths), num_shards):
        offsets = np.concatenate([[0], np.cumsum(part)]).astype(np.int64)
        shards.append(
            TokenShard(
                tokens=np.zeros(offsets[-1], np.uint16),
                sentence_offsets=offsets,
                document_offsets=np.arange(len(part) + 1),
                word_starts=np.zeros(0, np.uint8),
            )
        )
    by_bin = np.bincount([length.bit_length() - 1 for length in lengths], minlength=63)
    found = [info_module._length_of_rank(shards, by_bin, rank) for rank in range(len(lengths))]
    assert found == sorted(lengths)


def test_row_fill_is_what_the_rows_hold(built: Path) -> None:
    corpus = Corpus.open(built)
    for pack_info in corpus_info(built)["packings"]:
        packing = Packing.open(corpus, pack_info["length"], pack_info["mode"])
        rows = RowReader(corpus, packing, "train").read(np.arange(packing.num_examples))
        assert pack_info["fill_share"] == pytest.approx(
            rows.num_tokens_B.mean() / pack_info["length"]
        )
        full = np.minimum(rows.num_tokens_B * 10 // pack_info["length"], 9)
        assert pack_info["rows_by_fill"] == np.bincount(full, minlength=10).tolist()


def test_blocks_of_packed_rows_are_counted_with_their_special_tokens() -> None:
    rows = {
        "start": np.array([0, 5, 9]),
        "block_offsets": np.array([0, 2, 3, 6]),
        "block_lengths": np.array([3, 2, 4, 1, 1, 1], np.uint16),
    }
    assert info_module._row_tokens(rows).tolist() == [9, 6, 9]


def test_vocabulary_use_is_that_of_the_train_tokens(built: Path) -> None:
    corpus = Corpus.open(built)
    tokens = np.concatenate(corpus.token_shards("train"))
    counts = np.bincount(tokens, minlength=corpus.vocab_size)
    use = corpus_info(built)["vocabulary"]
    assert use["never_seen"] == int((counts == 0).sum()) - 4
    assert use["seen_rarely"] == int(((counts > 0) & (counts < 100)).sum())
    assert [one["count"] for one in use["commonest"]] == sorted(counts.tolist())[::-1][:10]
    first = use["commonest"][0]
    assert counts[first["id"]] == first["count"] == use["count_by_rank"][0][1]
    assert first["share"] == first["count"] / len(tokens)
    assert all(a[0] < b[0] and a[1] >= b[1] for a, b in zip(
        use["count_by_rank"], use["count_by_rank"][1:], strict=False
    ))  # fmt: skip


def test_what_was_left_out_is_said(built: Path) -> None:
    info = json.loads(json.dumps(corpus_info(built)))
    assert info["duplicates"] == {"exact": 10, "near": 0}
    assert info["cleaning"]["zero_width"] == 100
    assert info["quarantine"]["records"] == 2
    kept = info["splits"]["train"]["documents"] + info["splits"]["held_out"]["documents"]
    assert sum(one["documents"] for one in info["licenses"]) == kept
    shown = render_info(info)
    for words in (
        "10 exact and 0 near ones left out",
        "100 zero width",
        "1 not JSON, 1 not a JSON object",
        "CC0-1.0 (",
        "not given (",
        "ids never seen in train",
        "length 64, google",
        "% with two segments",
        "% of the positions filled",
        f"{info['vocabulary']['commonest'][0]['token']} ",
    ):
        assert words in shown
    chart = [line for line in shown.split("\n") if re.match(r" +[\d,]+ to [\d,]+ tokens ", line)]
    bins = info["splits"]["train"]["document_lengths"]
    assert [line.endswith("#") for line in chart] == [one["documents"] > 0 for one in bins]
    assert max(line.count("#") for line in chart) == 40


def without(built: Path, out: Path) -> Path:
    """A corpus as the first version wrote it: no duplicates, licences, cleaning, special tokens."""
    out.mkdir()
    for path in built.iterdir():
        if path.is_file():
            (out / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((built / "manifest.json").read_bytes())
    for name in ("duplicates", "near_duplicates", "cleaning", "left_out_by_weight", "dedup"):
        del manifest[name]
    del manifest["tokenizer"]["special_tokens"], manifest["quarantine"]["kept_by_reason"]
    for source in manifest["sources"]:
        for name in ("license", "weight", "cleaning", "duplicates", "near_duplicates"):
            del source[name]
    store.write_json(out / "manifest.json", manifest)
    return out


def test_an_older_corpus_and_one_without_packings_are_shown_too(
    built: Path, tmp_path: Path
) -> None:
    info = corpus_info(without(built, tmp_path / "$old 猫"))
    assert info["duplicates"] == {"exact": None, "near": None}
    shown = render_info(info)
    assert "none yet: run `electra-dist corpus pack`" in shown
    assert "duplicates" not in shown
    plot_corpus(info, tmp_path / "old.png")
    assert (tmp_path / "old.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_has_the_four_panels_with_units(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    figures: list[Any] = []
    saved = Figure.savefig

    def save(figure: Figure, *args: Any, **words: Any) -> None:
        figures.append(figure)
        saved(figure, *args, **words)

    monkeypatch.setattr(Figure, "savefig", save)
    info = corpus_info(built)
    info["quarantine"]["by_reason"] = {f"reason {i} {'long ' * 20}": i + 1 for i in range(9)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_corpus(info, tmp_path / "corpus.png")
    panels = [axes for part in figures[0].subfigs for axes in part.axes]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "Document length (train)",
        "Row fill",
        "Token frequency (train)",
        "Documents and bad records",
    ]
    for axes, unit in zip(panels, ("tokens", "%", "rank", "documents"), strict=True):
        assert unit in axes.get_xlabel()
    heights = [bar.get_height() for bar in panels[0].patches]
    lengths = info["splits"]["train"]["document_lengths"]
    assert heights == [one["documents"] for one in lengths]
    assert panels[1].get_legend().get_texts()[0].get_text().startswith("32 full: ")
    assert panels[2].lines[0].get_ydata()[0] == info["vocabulary"]["commonest"][0]["count"]
    assert "bad: 3 other reasons" in [label.get_text() for label in panels[3].get_yticklabels()]


def test_a_figure_that_cannot_be_made_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_plot(tmp_path / "a.PNG")
    with pytest.raises(UserError, match="no folder"):
        check_plot(tmp_path / "absent" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'electra_dist\[plot\]'"):
        check_plot(tmp_path / "a.png")
