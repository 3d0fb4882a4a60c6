import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from electra_dist.data import store
from electra_dist.data.build import BuildSummary, build_corpus
from electra_dist.data.build_options import BuildOptions, SourceSpec
from electra_dist.data.info import corpus_info
from electra_dist.data.info_text import render_info
from electra_dist.data.packing import pack
from electra_dist.data.records import SourceOptions
from electra_dist.data.store import Corpus, Packing
from electra_dist.data.tokenize import load_tokenizer
from electra_dist.data.verify import verify_corpus
from electra_dist.errors import UserError
from electra_dist.runtime.progress import Progress
from tests.made_up import ROBERTA, SPECIALS, trained

RNG = random.Random(0)
WORDS = ["".join(RNG.choices("abcdefghijklm", k=RNG.randint(1, 7))) for _ in range(300)]
DOCUMENTS = [
    [" ".join(RNG.choices(WORDS, k=RNG.randint(1, 12))) + "." for _ in range(RNG.randint(1, 9))]
    for _ in range(300)
]


def write_input(folder: Path) -> Path:
    folder.mkdir()
    for part in range(3):
        documents = DOCUMENTS[100 * part : 100 * (part + 1)]
        text = "\n\n".join("\n".join(document) for document in documents)
        (folder / f"part{part}.txt").write_text(text)
    return folder


def build(tmp_path: Path, name: str = "corpus", **options: Any) -> BuildSummary:
    source = tmp_path / "input"
    if not source.exists():
        write_input(source)
    defaults: dict[str, Any] = {
        "sources": (spec(source),),
        "vocab_size": 300,
        "held_out_share": 0.1,
    }
    return build_corpus(BuildOptions(out=tmp_path / name, **(defaults | options)))


def spec(*inputs: Path, splitter: str = "lines", **words: Any) -> SourceSpec:
    """Text is split into sentences at line ends only, so that tests know what to expect."""
    options = {name: words.pop(name) for name in ("text_field",) if name in words}
    return SourceSpec(
        inputs=tuple(map(str, inputs)),
        options=SourceOptions(splitter=splitter, **options),
        **words,
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One corpus in several shards with two packings; tests only read it."""
    tmp_path = tmp_path_factory.mktemp("shared")
    build(tmp_path, shard_tokens=2000)
    pack(tmp_path / "corpus", 32)
    pack(tmp_path / "corpus", 64, "google", seed=3)
    return tmp_path / "corpus"


def copy(corpus: Path, target: Path) -> Path:
    for file in corpus.rglob("*"):
        if file.is_file():
            (target / file.relative_to(corpus)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(corpus)).write_bytes(file.read_bytes())
    return target


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stored_documents(corpus: Corpus, split: str) -> list[list[list[int]]]:
    documents = []
    for shard in corpus.shards(split):
        sentences = np.split(shard.tokens, shard.sentence_offsets[1:-1])
        bounds = shard.document_offsets
        documents += [
            [s.tolist() for s in sentences[bounds[d] : bounds[d + 1]]]
            for d in range(len(bounds) - 1)
        ]
    return documents


def test_the_store_holds_every_document_in_order(shared: Path) -> None:
    corpus = Corpus.open(shared)
    tokenizer = load_tokenizer(corpus.tokenizer_path)
    expected = [
        [e.ids for e in tokenizer.encode_batch(document, add_special_tokens=False)]
        for document in DOCUMENTS
    ]
    train, held_out = (stored_documents(corpus, split) for split in store.SPLITS)
    assert len(corpus.shards("train")) > 3
    assert len(held_out) > 10
    assert [document for document in expected if document in train] == train
    assert [document for document in expected if document in held_out] == held_out
    assert len(train) + len(held_out) == len(DOCUMENTS)
    assert all(len(tokens) <= 2000 for tokens in corpus.token_shards("train"))
    assert corpus.token_shards("train")[0].dtype == np.uint16
    assert tokenizer.decode(train[0][0]).replace(" .", ".") in [d[0] for d in DOCUMENTS]


def test_the_manifest_counts_what_is_there(shared: Path) -> None:
    corpus = Corpus.open(shared)
    manifest = corpus.manifest
    for split in store.SPLITS:
        documents = stored_documents(corpus, split)
        entry = manifest["splits"][split]
        assert entry["documents"] == len(documents)
        assert entry["sentences"] == sum(map(len, documents))
        assert entry["tokens"] == sum(len(s) for document in documents for s in document)
    counts = np.bincount(np.concatenate(corpus.token_shards("train")), minlength=corpus.vocab_size)
    np.testing.assert_array_equal(corpus.unigram_counts(), counts)
    assert [f["name"] for f in manifest["sources"][0]["files"]] == [
        f"part{i}.txt" for i in range(3)
    ]
    assert [f["documents"] for f in manifest["sources"][0]["files"]] == [100, 100, 100]
    assert manifest["vocab_size"] == corpus.vocab_size == 300
    assert (corpus.special_ids.pad, corpus.special_ids.mask) == (0, 4)
    assert manifest["tokenizer"]["kind"] == "wordpiece"


def test_word_starts_are_recorded(shared: Path) -> None:
    corpus = Corpus.open(shared)
    tokenizer = load_tokenizer(corpus.tokenizer_path)
    for shard in corpus.shards("train"):
        bits = np.unpackbits(shard.word_starts, bitorder="little", count=len(shard.tokens))
        spelled = [tokenizer.id_to_token(i) for i in shard.tokens.tolist()]
        assert bits.tolist() == [not token.startswith("##") for token in spelled]


def test_the_number_of_workers_changes_no_byte(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small parts, so that there are many for each worker; the shared corpus was built from one.
    monkeypatch.setattr("electra_dist.data.records.PIECE_BYTES", 1000)
    monkeypatch.setattr("electra_dist.data.parts._FIRST_PART_BYTES", 2000)
    # The path as given is provenance, so the input must be the same one.
    sources = (spec(shared.parent / "input"),)
    build(tmp_path, sources=sources, shard_tokens=2000, num_workers=3)
    pack(tmp_path / "corpus", 32)
    pack(tmp_path / "corpus", 64, "google", seed=3)
    assert files_of(tmp_path / "corpus") == files_of(shared)


def test_jsonl_gives_the_same_tokens_as_text(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"body": "\n".join(d)}) + "\n" for d in DOCUMENTS))
    summary = build(
        tmp_path,
        sources=(spec(path, kind="jsonl", text_field="body"),),
        tokenizer=str(shared / "tokenizer.json"),
        shard_tokens=2000,
    )
    assert summary.fingerprint == Corpus.open(shared).fingerprint


def test_the_fingerprint_names_the_content(shared: Path, tmp_path: Path) -> None:
    other = build(tmp_path, held_out_share=0.2, tokenizer=str(shared / "tokenizer.json"))
    assert other.fingerprint != Corpus.open(shared).fingerprint


def test_bad_records_are_quarantined_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = [json.dumps({"text": "\n".join(d)}).encode() for d in DOCUMENTS]
    lines = [
        *good[:5],
        b"{broken",
        b'{"text": ""}',
        b'{"text": "\\u0001"}',
        *good[5:],
        b'{"text": 1}',
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    sources = (spec(path, kind="jsonl"),)
    summary = build(tmp_path, sources=sources, max_quarantine_share=0.02)
    assert (summary.quarantined, summary.empty_documents) == (2, 2)
    assert summary.documents + summary.held_out_documents == len(DOCUMENTS)
    listed = (tmp_path / "corpus" / "quarantine.jsonl").read_text().splitlines()
    first = sum(len(line) + 1 for line in lines[:5])
    last = sum(len(line) + 1 for line in lines[:-1])
    assert [json.loads(line) for line in listed] == [
        {"file": "a.jsonl", "byte_offset": first, "reason": "not JSON"},
        {"file": "a.jsonl", "byte_offset": last, "reason": "the text field is not a string"},
    ]
    quarantine = Corpus.open(tmp_path / "corpus").manifest["quarantine"]
    assert quarantine["records"] == 2
    assert quarantine["of_records"] == len(lines)
    assert quarantine["by_reason"] == {"not JSON": 1, "the text field is not a string": 1}


def test_too_many_bad_records_fail_the_build_and_say_where(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = [json.dumps({"text": "\n".join(d)}) for d in DOCUMENTS[:98]]
    path.write_text("\n".join([*good, "{", "["]))
    options: dict[str, Any] = {"sources": (spec(path, kind="jsonl"),)}
    with pytest.raises(UserError, match=r"2 of 100 records.*a\.jsonl at byte.*not JSON"):
        build(tmp_path, **options)
    assert not (tmp_path / "corpus").exists()
    assert len((tmp_path / "corpus.building" / "quarantine.jsonl").read_text().splitlines()) == 2
    # The leftover is in nobody's way.
    build(tmp_path, max_quarantine_share=0.02, **options)
    assert not (tmp_path / "corpus.building").exists()


def test_a_corpus_is_never_overwritten(shared: Path) -> None:
    before = files_of(shared)
    with pytest.raises(UserError, match="exists already"):
        build(shared.parent)
    assert files_of(shared) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": (spec(Path("/absent/file.txt")),)}, "/absent/file.txt does not exist"),
        ({"sources": ()}, "no source"),
        ({"tokenizer": "/absent/vocab.txt"}, "/absent/vocab.txt does not exist"),
        ({"dedup": "fuzzy"}, "'fuzzy' is unknown"),
        ({"dedup": "near", "near_threshold": 0.0}, "near_threshold 0.0"),
        ({"held_out_share": 1.0}, "held_out_share 1.0"),
        ({"num_workers": 0}, "num_workers 0"),
        ({"held_out_share": 0.99999}, "no document to train on"),
    ],
)
def test_wrong_options_are_the_users_mistake(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path, **options)
    assert not (tmp_path / "corpus").exists()


def test_an_input_without_documents_is_the_users_mistake(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "a.txt").write_text("\n \n")
    sources = (spec(tmp_path / "a.txt"),)
    with pytest.raises(UserError, match="no document to train on"):
        build(tmp_path, sources=sources, tokenizer=str(shared / "tokenizer.json"))
    with pytest.raises(UserError, match="no text"):
        build(tmp_path, sources=sources)


def test_progress_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("electra_dist.data.parts._FIRST_PART_BYTES", 1)
    seen: list[Progress] = []
    source = write_input(tmp_path / "input")
    options = BuildOptions(sources=(spec(source),), out=tmp_path / "corpus", vocab_size=300)
    summary = build_corpus(options, report=seen.append)
    sizes = [path.stat().st_size for path in sorted(source.iterdir())]
    encoding = [progress for progress in seen if progress.phase == "encoding"]
    assert [progress.num_bytes for progress in encoding] == np.cumsum(sizes).tolist()
    assert all(progress.total_bytes == sum(sizes) for progress in encoding)
    assert encoding[-1].num_tokens == summary.tokens + summary.held_out_tokens
    assert list(dict.fromkeys(p.phase for p in seen)) == ["vocabulary", "encoding", "merging"]


def test_a_document_larger_than_a_shard_has_one_for_itself(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "a.txt").write_text("a b\n\n" + "c d e f g h i j k l m\n" * 20 + "\nb a\n")
    build(
        tmp_path,
        sources=(spec(tmp_path / "a.txt"),),
        tokenizer=str(shared / "tokenizer.json"),
        shard_tokens=50,
        held_out_share=0.0,
    )
    sizes = [len(tokens) for tokens in Corpus.open(tmp_path / "corpus").token_shards("train")]
    assert sizes == [2, 220, 2]
    assert verify_corpus(tmp_path / "corpus") == []


def test_a_packing_opens_with_its_examples(shared: Path) -> None:
    corpus = Corpus.open(shared)
    packing = Packing.open(corpus, 32, "full")
    examples = packing.examples("train")
    assert len(examples) == len(corpus.shards("train"))
    assert sum(len(e.start) for e in examples) == packing.num_examples
    for part, tokens in zip(examples, corpus.token_shards("train"), strict=True):
        taken = part.length_a.astype(int) + part.length_b
        np.testing.assert_array_equal(part.start, np.concatenate([[0], np.cumsum(taken)[:-1]]))
        assert taken.sum() == len(tokens)
    assert packing.fingerprint != Packing.open(corpus, 64, "google").fingerprint
    share = np.mean(np.concatenate([e.length_b > 0 for e in examples]))
    assert packing.manifest["two_segment_share"] == pytest.approx(share)
    assert sum(len(e.start) for e in packing.examples("held_out")) > 0


def test_packing_again_changes_nothing_and_another_seed_is_refused(shared: Path) -> None:
    before = files_of(shared)
    assert pack(shared, 32) == shared / "pack_32_full"
    assert files_of(shared) == before
    with pytest.raises(UserError, match="wanted seed 1"):
        pack(shared, 32, seed=1)


def test_packing_mistakes_are_named(shared: Path) -> None:
    for arguments, message in (((4,), "--length 4"), ((70000,), "70000"), ((32, "fast"), "'fast'")):
        with pytest.raises(UserError, match=message):
            pack(shared, *arguments)
    with pytest.raises(UserError, match=r"corpus pack .* --length 128 --mode full"):
        Packing.open(Corpus.open(shared), 128)


def test_a_packing_of_another_corpus_is_refused(shared: Path, tmp_path: Path) -> None:
    build(tmp_path, tokenizer=str(shared / "tokenizer.json"))
    copy(shared / "pack_32_full", tmp_path / "corpus" / "pack_32_full")
    with pytest.raises(UserError, match=r"remove it and run `electra-dist corpus pack"):
        Packing.open(Corpus.open(tmp_path / "corpus"), 32)
    assert any("another corpus" in problem for problem in verify_corpus(tmp_path / "corpus"))


def test_a_whole_corpus_verifies(shared: Path) -> None:
    assert verify_corpus(shared) == []


DAMAGED = [
    "tokens_00001.safetensors",
    "held_out_00000.safetensors",
    "unigram.safetensors",
    "tokenizer.json",
    "pack_32_full/examples_00000.safetensors",
    "pack_64_google/held_out_examples_00000.safetensors",
]


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_verify_names_the_damaged_file(
    shared: Path, tmp_path: Path, name: str, damage: str
) -> None:
    corpus = copy(shared, tmp_path / "corpus")
    data = bytearray((corpus / name).read_bytes())
    data[-3] ^= 1
    if damage == "remove":
        (corpus / name).unlink()
    else:
        (corpus / name).write_bytes(data if damage == "flip" else data[:-5])
    problems = verify_corpus(corpus)
    assert len(problems) == 1
    assert name in problems[0]
    if damage != "flip" and "/" not in name and name != "tokenizer.json":
        with pytest.raises(UserError, match=name):
            Corpus.open(corpus)


def rewrite(corpus: Path, **changes: Any) -> None:
    """Replaces arrays of the first token shard, with a manifest that agrees with the new file."""
    name = "tokens_00000.safetensors"
    arrays = {n: a.copy() for n, a in store.read_arrays(corpus / name).items()}
    for key, change in changes.items():
        arrays[key][change[0]] = change[1]
    record = store.write_arrays(corpus / name, arrays)
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["xxh3_128"] = record.xxh3_128
    store.write_json(corpus / "manifest.json", manifest)


@pytest.mark.parametrize("special", [SPECIALS, ROBERTA])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_other_tokenizers_fill_a_corpus_that_reads_back(
    tmp_path: Path, kind: str, special: tuple[str, ...]
) -> None:
    text = tmp_path / "text.txt"
    lines = [f"the cats {i} sat {special[4]}\n\nthere, {i} hats" for i in range(50)]
    text.write_text("\n\n".join(lines))
    trained(kind, special, extra=["0 1 2 3 4 5 6 7 8 9"]).save(str(tmp_path / "tokenizer.json"))
    build(tmp_path, sources=(spec(text),), tokenizer=str(tmp_path / "tokenizer.json"))
    corpus = Corpus.open(tmp_path / "corpus")
    recorded = corpus.manifest["tokenizer"]
    assert recorded["kind"] == kind
    assert recorded["special_tokens"] == dict(
        zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True)
    )
    tokenizer = load_tokenizer(corpus.tokenizer_path)
    assert corpus.special_ids.mask == tokenizer.token_to_id(special[4])
    found = []
    for shard in corpus.shards("train"):
        starts = np.unpackbits(shard.word_starts, bitorder="little", count=len(shard.tokens))
        for start, end in pairwise(shard.sentence_offsets.tolist()):
            ids = shard.tokens[start:end].tolist()
            found.append(tokenizer.decode(ids, skip_special_tokens=False))
            # One word for each space-separated one; Unigram has no sign for some of them.
            assert starts[start] == 1
            assert starts[start:end].sum() <= len(found[-1].split()) + (kind == "unigram")
    if kind == "bpe":  # Every byte has a token: nothing is lost, a literal mask neither.
        assert set(found) <= {line for pair in lines for line in pair.split("\n\n")}
    assert sum("hats" in text for text in found) > 30
    assert verify_corpus(tmp_path / "corpus") == []


@pytest.mark.slow
def test_a_vocabulary_over_65536_is_stored_in_four_bytes(tmp_path: Path) -> None:
    for size, name in ((65536, "uint16"), (65537, "uint32")):
        words = [*SPECIALS, *(f"w{i}" for i in range(size - 5))]
        (tmp_path / "vocab.txt").write_text("\n".join(words))
        (tmp_path / "text.txt").write_text(f"w{size - 6} w0\n" * 20)
        out = f"corpus{size}"
        vocabulary = str(tmp_path / "vocab.txt")
        build(
            tmp_path,
            out,
            sources=(spec(tmp_path / "text.txt"),),
            tokenizer=vocabulary,
            held_out_share=0,
        )
        corpus = Corpus.open(tmp_path / out)
        assert (corpus.manifest["dtype"], corpus.vocab_size) == (name, size)
        (tokens,) = corpus.token_shards("train")
        assert tokens.dtype == name
        assert tokens[:2].tolist() == [size - 1, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": (3, 300)}, "token id 300"),
        ({"sentence_offsets": (2, 0)}, "sentence_offsets do not run"),
        ({"document_offsets": (0, 1)}, "document_offsets do not run"),
    ],
)
def test_verify_looks_inside_files_whose_hash_is_right(
    shared: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    corpus = copy(shared, tmp_path / "corpus")
    rewrite(corpus, **changes)
    problems = verify_corpus(corpus)
    assert any(message in problem for problem in problems)
    assert any("fingerprint" in problem for problem in problems)


def test_verify_counts_the_tokens_again(shared: Path, tmp_path: Path) -> None:
    corpus = copy(shared, tmp_path / "corpus")
    counts = Corpus.open(corpus).unigram_counts().copy()
    counts[7] += 1
    record = store.write_arrays(corpus / "unigram.safetensors", {"counts": counts})
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["unigram"]["xxh3_128"] = record.xxh3_128
    store.write_json(corpus / "manifest.json", manifest)
    assert verify_corpus(corpus) == [
        "unigram.safetensors: counts differ from the tokens of the train split"
    ]


def test_info_is_json_and_text(shared: Path) -> None:
    info = json.loads(json.dumps(corpus_info(shared)))
    train = info["splits"]["train"]
    documents = stored_documents(Corpus.open(shared), "train")
    lengths = [sum(map(len, document)) for document in documents]
    assert train["mean_document_tokens"] == pytest.approx(np.mean(lengths))
    assert train["median_document_tokens"] == pytest.approx(np.median(lengths))
    assert [(p["length"], p["mode"], p["seed"]) for p in info["packings"]] == [
        (32, "full", 0),
        (64, "google", 3),
    ]
    assert info["unknown_token_share"] == 0
    text = render_info(info)
    assert f"{train['tokens']:,} tokens" in text
    assert "length 64, google" in text
