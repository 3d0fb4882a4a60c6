"""Which documents a build keeps, how often, and what it says about them."""

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from electra_dist.data.build import BuildSummary, build_corpus
from electra_dist.data.build_options import BuildOptions, SourceSpec, read_sources
from electra_dist.data.records import SourceOptions
from electra_dist.data.store import Corpus
from electra_dist.data.tokenize import load_tokenizer
from electra_dist.data.verify import verify_corpus
from electra_dist.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every letter stands for itself, so that texts come back from tokens."""
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
    path.write_text("\n".join([*tokens, *"0123456789.,!?", *(f"##{d}" for d in range(10))]))
    return str(path)


def numbered(*numbers: int) -> str:
    """Documents of two sentences, each its own."""
    return "\n\n".join(f"text number {n}.\nit ends with {n * n}." for n in numbers) + "\n"


def build(tmp_path: Path, vocab: str, *specs: SourceSpec, **options: Any) -> BuildSummary:
    defaults: dict[str, Any] = {"held_out_share": 0.2, "tokenizer": vocab}
    out = tmp_path / "corpus"
    return build_corpus(BuildOptions(sources=specs, out=out, **(defaults | options)))


def texts(corpus: Path, split: str) -> list[str]:
    """The documents of a split, sentences joined by a space."""
    opened = Corpus.open(corpus)
    tokenizer = load_tokenizer(opened.tokenizer_path)
    found = []
    for shard in opened.shards(split):
        sentences = np.split(shard.tokens, shard.sentence_offsets[1:-1])
        spelled = [tokenizer.decode(sentence).replace(" .", ".") for sentence in sentences]
        ends = shard.document_offsets.tolist()
        found += [" ".join(spelled[a:b]) for a, b in pairwise(ends)]
    return found


def counts(corpus: Path) -> tuple[Counter[str], Counter[str]]:
    return Counter(texts(corpus, "train")), Counter(texts(corpus, "held_out"))


def spec(path: Path, **words: Any) -> SourceSpec:
    return SourceSpec(inputs=(str(path),), **words)


def test_of_equal_documents_the_first_is_kept(tmp_path: Path, vocab: str) -> None:
    (tmp_path / "a.txt").write_text(numbered(*range(50), *range(10)))
    (tmp_path / "b.txt").write_text(numbered(*range(40, 60)))
    specs = [spec(tmp_path / name) for name in ("a.txt", "b.txt")]
    summary = build(tmp_path, vocab, *specs)
    train, held_out = counts(tmp_path / "corpus")
    assert set((train + held_out).values()) == {1}
    assert len(train) + len(held_out) == 60
    assert list(train) == sorted(train, key=lambda text: int(text.split()[2].rstrip(".")))
    assert (summary.duplicates, summary.near_duplicates) == (20, 0)
    sources = Corpus.open(tmp_path / "corpus").manifest["sources"]
    assert [(s["documents"], s["duplicates"]) for s in sources] == [(50, 10), (10, 10)]
    assert verify_corpus(tmp_path / "corpus") == []


def test_duplicates_may_stay(tmp_path: Path, vocab: str) -> None:
    (tmp_path / "a.txt").write_text(numbered(*range(50), *range(10)))
    summary = build(tmp_path, vocab, spec(tmp_path / "a.txt"), dedup="none")
    train, held_out = counts(tmp_path / "corpus")
    assert (train + held_out).total() == 60
    assert not train.keys() & held_out.keys()
    assert summary.duplicates == 0


def test_near_duplicates_are_left_out_and_counted(tmp_path: Path, vocab: str) -> None:
    pytest.importorskip("rensa")
    rng = random.Random(0)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(2, 8))) for _ in range(400)]
    documents = [rng.choices(words, k=120) for _ in range(30)]
    near = [[*document[:60], "other", *document[61:]] for document in documents[:12]]
    lines = [" ".join(document) for document in [*documents, *near, documents[0]]]
    (tmp_path / "a.txt").write_text("\n\n".join(lines))
    summary = build(tmp_path, vocab, spec(tmp_path / "a.txt"), dedup="near")
    train, held_out = counts(tmp_path / "corpus")
    assert set(train + held_out) == {" ".join(document) for document in documents}
    assert (summary.duplicates, summary.near_duplicates) == (1, 12)
    [source] = Corpus.open(tmp_path / "corpus").manifest["sources"]
    assert (source["documents"], source["near_duplicates"]) == (30, 12)


@pytest.mark.parametrize("weight", [0.25, 1.0, 2.0, 2.5])
def test_a_weight_says_how_often_documents_stand(tmp_path: Path, vocab: str, weight: float) -> None:
    (tmp_path / "a.txt").write_text(numbered(*range(400)))
    (tmp_path / "b.txt").write_text(numbered(*range(400, 420)))
    build(tmp_path, vocab, spec(tmp_path / "a.txt", weight=weight), spec(tmp_path / "b.txt"))
    train, held_out = counts(tmp_path / "corpus")
    assert set(held_out.values()) == {1}
    assert 60 < len(held_out) < 110  # of 420, whatever the weight
    a = [n for text, n in train.items() if int(text.split()[2].rstrip(".")) < 400]
    assert set(a) <= {int(weight), int(np.ceil(weight))}
    num_trainable = 420 - len(held_out) - (len(train) - len(a))
    assert sum(a) / num_trainable == pytest.approx(weight, abs=0.08)
    manifest = Corpus.open(tmp_path / "corpus").manifest
    assert manifest["sources"][0]["left_out_by_weight"] == num_trainable - len(a)
    assert manifest["sources"][0]["weight"] == weight
    assert verify_corpus(tmp_path / "corpus") == []


def test_copies_are_not_neighbours(tmp_path: Path, vocab: str) -> None:
    (tmp_path / "a.txt").write_text(numbered(*range(50)))
    build(tmp_path, vocab, spec(tmp_path / "a.txt", weight=2.0))
    train = texts(tmp_path / "corpus", "train")
    assert train[: len(train) // 2] == train[len(train) // 2 :]


def test_the_manifest_says_where_documents_come_from(tmp_path: Path, vocab: str) -> None:
    (tmp_path / "a.txt").write_bytes(numbered(*range(30)).encode() + b"\nzero\xe2\x80\x8bwidth\r\n")
    (tmp_path / "b.jsonl").write_text('{"body": "A text. And more."}\n{"body": ""}\n{"bod')
    specs = [
        spec(tmp_path / "a.txt", license="CC0-1.0"),
        spec(tmp_path / "b.jsonl", kind="jsonl", options=SourceOptions(text_field="body")),
    ]
    build(tmp_path, vocab, *specs, max_quarantine_share=0.5)
    manifest = Corpus.open(tmp_path / "corpus").manifest
    a, b = manifest["sources"]
    assert (a["license"], b["license"]) == ("CC0-1.0", None)
    assert (a["documents"], b["documents"]) == (31, 1)
    assert (b["empty_documents"], b["records"], b["bad_records"]) == (1, 3, 1)
    assert a["cleaning"] == {"newlines": 1, "zero_width": 1}
    assert manifest["cleaning"] == a["cleaning"]
    assert b["options"]["text_field"] == "body"
    assert [file["name"] for file in b["files"]] == ["b.jsonl"]


def test_a_document_over_the_limit_is_split_and_listed(tmp_path: Path, vocab: str) -> None:
    (tmp_path / "a.txt").write_text(numbered(1, 2) + "\n" + "one more sentence.\n" * 40)
    options = SourceOptions(max_document_bytes=200)
    summary = build(tmp_path, vocab, spec(tmp_path / "a.txt", options=options), dedup="none")
    assert summary.quarantined == 0
    assert summary.documents + summary.held_out_documents > 5
    manifest = Corpus.open(tmp_path / "corpus").manifest
    assert manifest["cleaning"]["split_documents"] > 2
    assert manifest["quarantine"]["records"] == 0
    listed = (tmp_path / "corpus" / "quarantine.jsonl").read_text().splitlines()
    assert all(json.loads(line)["kept"] for line in listed)
    assert sum(manifest["quarantine"]["kept_by_reason"].values()) == len(listed) > 0


@pytest.mark.parametrize("splitter", ["lines", "punctuation"])
def test_the_tokens_decode_to_the_text(tmp_path: Path, vocab: str, splitter: str) -> None:
    """Random words over two kinds of files: all come back, in order, but for case and spaces."""
    rng = random.Random(3)

    def sentence() -> str:
        words = ("".join(rng.choices(LETTERS, k=rng.randint(1, 9))) for _ in range(8))
        return " ".join(words).capitalize() + rng.choice(".!?")

    documents = [
        ["  ".join(sentence() for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 5))]
        for _ in range(60)
    ]
    (tmp_path / "a.txt").write_text("\n\n".join("\n".join(d) for d in documents[:30]))
    lines = [json.dumps({"text": "\n".join(d)}) + "\n" for d in documents[30:]]
    (tmp_path / "b.jsonl").write_text("".join(lines))
    options = SourceOptions(splitter=splitter)
    specs = [
        spec(tmp_path / "a.txt", options=options),
        spec(tmp_path / "b.jsonl", kind="jsonl", options=options),
    ]
    build(tmp_path, vocab, *specs)
    expected = ["".join("".join(d).lower().split()) for d in documents]
    stored = {s: ["".join(t.split()) for t in texts(tmp_path / "corpus", s)] for s in SPLITS}
    assert sorted(stored["train"] + stored["held_out"]) == sorted(expected)
    for found in stored.values():
        assert found == [text for text in expected if text in found]


SPLITS = ("train", "held_out")


def test_a_file_of_sources_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sources.toml"
    path.write_text(
        '[[source]]\ninput = ["a.txt", "b.txt"]\nweight = 2\nlicense = "CC0-1.0"\n'
        '[[source]]\nkind = "jsonl"\ninput = "c.jsonl"\nfield = "body"\nsplitter = "lines"\n'
        "max_document_bytes = 500\n"
    )
    assert read_sources(path, {"max_document_bytes": 1000}) == (
        SourceSpec(
            inputs=("a.txt", "b.txt"),
            weight=2,
            license="CC0-1.0",
            options=SourceOptions(max_document_bytes=1000),
        ),
        SourceSpec(
            inputs=("c.jsonl",),
            kind="jsonl",
            options=SourceOptions(text_field="body", splitter="lines", max_document_bytes=500),
        ),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[source]\n", "not a readable TOML file"),
        ("", r"must hold \[\[source\]\] tables"),
        ("[source]\ninput = 'a'\n", r"must hold \[\[source\]\] tables"),
        ("[[source]]\ninput = 'a'\n[[source]]\nweight = 1\n", "source 2: input must be"),
        ("[[source]]\ninput = 'a'\nlicence = 'x'\n", "source 1: unknown key 'licence'"),
        ("[[source]]\ninput = 'a'\nweight = '2'\n", "weight = '2' must be a number"),
        ("[[source]]\ninput = 'a'\nweight = 0\n", "source 1: weight 0 is out of range"),
        ("[[source]]\ninput = 'a'\nmax_sentence_bytes = 99.5\n", "must be a whole number"),
        ("[[source]]\ninput = 'a'\nkind = 'csv'\n", "'csv' is unknown"),
        ("[[source]]\ninput = 'a'\nsplitter = 'x'\n", "source 1: splitter 'x' is unknown"),
    ],
)
def test_a_wrong_file_of_sources_names_the_place(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "sources.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_sources(path, {})
