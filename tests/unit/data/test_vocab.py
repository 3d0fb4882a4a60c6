import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from electra_dist.data import vocab
from electra_dist.data.tokenize import describe, is_held_out, load_tokenizer, text_digest
from electra_dist.errors import UserError


def write_text(path: Path, num_sentences: int = 400) -> Path:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(150)]
    lines = [" ".join(rng.choices(words, k=8)).capitalize() + ". 猫é" for _ in range(num_sentences)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def train(text: Path, out: Path, **words: Any) -> dict[str, Any]:
    return vocab.train_vocab(vocab.text_input([str(text)]), out, **words)


def test_the_trained_vocabulary_has_the_size_and_spells_the_text(tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt")
    size = train(text, tmp_path / "vocab.txt", vocab_size=200)["vocab_size"]
    tokens = (tmp_path / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert size == len(tokens) == 200
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"猫", "##a", ".", "e"} <= set(tokens)
    assert not {"##猫", "##."} & set(tokens)
    tokenizer = load_tokenizer(tmp_path / "vocab.txt")
    encoding = tokenizer.encode(text.read_text(encoding="utf-8").split("\n")[0])
    assert "[UNK]" not in encoding.tokens


def test_both_files_hold_the_same_tokenizer(tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt")
    train(text, tmp_path / "v.txt", vocab_size=150, lowercase=False)
    train(text, tmp_path / "v.json", vocab_size=150, lowercase=False)
    a = load_tokenizer(tmp_path / "v.txt", lowercase=False)
    b = load_tokenizer(tmp_path / "v.json")
    assert a.to_str() == b.to_str()
    assert describe(b).lowercase is False
    assert any(token[0].isupper() for token in b.get_vocab())


def test_training_gives_the_same_vocabulary_in_every_process(tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt")
    code = (
        "import sys; from electra_dist.data.vocab import text_input, train_vocab;"
        "train_vocab(text_input([sys.argv[1]]), sys.argv[2], vocab_size=200)"
    )
    found = set()
    for run, parallel in enumerate(("true", "false")):
        out = tmp_path / f"{run}.txt"
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": parallel}
        command = [sys.executable, "-c", code, str(text), str(out)]
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[3])
        found.add(out.read_bytes())
    train(text, tmp_path / "here.txt", vocab_size=200)
    found.add((tmp_path / "here.txt").read_bytes())
    assert len(found) == 1


def test_a_small_text_gives_a_smaller_vocabulary_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\none two\n")
    size = train(tmp_path / "a.txt", tmp_path / "v.txt")["vocab_size"]
    assert size < 50
    assert {"one", "two"} <= set((tmp_path / "v.txt").read_text().split("\n"))


def test_rare_characters_never_crowd_out_the_words(tmp_path: Path) -> None:
    many = "".join(chr(0x4E00 + i) for i in range(500))
    (tmp_path / "a.txt").write_text("some words here\n" * 50 + many, encoding="utf-8")
    size = train(tmp_path / "a.txt", tmp_path / "v.txt", vocab_size=100)["vocab_size"]
    assert size <= 100
    assert "words" in (tmp_path / "v.txt").read_text(encoding="utf-8").split("\n")


def test_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "v.txt").write_text("")
    empty = tmp_path / "empty.txt"
    with pytest.raises(UserError, match="no text"):
        train(empty, tmp_path / "w.txt")
    with pytest.raises(UserError, match="exists already"):
        train(empty, tmp_path / "v.txt")
    with pytest.raises(UserError, match=r"must end in \.txt"):
        train(empty, tmp_path / "v.model")
    with pytest.raises(UserError, match="of 10 entries"):
        train(empty, tmp_path / "w.txt", vocab_size=10)


def test_what_a_corpus_would_hold_out_is_measured_and_not_trained_on(tmp_path: Path) -> None:
    documents = [f"common words {'x' * (i % 7)}{i} here." for i in range(300)]
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    digests = [np.frombuffer(text_digest((d,)), ">u8").reshape(1, 2) for d in documents]
    num_held_out = sum(bool(is_held_out(digest, 0.3)[0]) for digest in digests)
    made = train(tmp_path / "a.txt", tmp_path / "v.txt", held_out_share=0.3)
    assert made["held_out"]
    assert 60 < num_held_out == made["report"]["documents"] == 300 - made["train_documents"]
    assert made["report"]["words"] == 4 * num_held_out
    text = vocab.render_trained(made)
    assert f"{num_held_out} documents" in text
    assert "tokens per word" in text


def test_without_a_held_out_document_the_text_itself_is_measured(tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt")
    made = train(text, tmp_path / "v.json", vocab_size=150, held_out_share=0.0)
    assert not made["held_out"]
    assert made["report"]["documents"] == made["train_documents"] == 1
    assert made["report"]["bytes"] == made["train_bytes"]
    assert "none is held out" in vocab.render_trained(made)


def test_any_tokenizer_is_measured_on_any_text(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\n##s\n.\n")
    (tmp_path / "a.jsonl").write_text('{"body": "The cats sat. The cat."}\n')
    text = vocab.text_input([str(tmp_path / "a.jsonl")], "jsonl", "body")
    found = vocab.vocab_report(tmp_path / "vocab.txt", text)
    report = found["report"]
    # the cat ##s [UNK] . | the cat .
    assert (report["words"], report["tokens"], report["characters"]) == (5, 8, 21)
    assert report["tokens_per_word"] == 8 / 5
    assert report["whole_word_share"] == 3 / 5
    assert report["unknown_token_share"] == 1 / 8
    assert report["commonest_unknown"] == [["sat", 1]]
    assert (found["kind"], found["vocab_size"], found["special_ids"]["mask"]) == ("wordpiece", 9, 4)
    cased = vocab.vocab_report(tmp_path / "vocab.txt", text, lowercase=False)
    assert cased["report"]["unknown_token_share"] == 3 / 8
    assert "[MASK] 4" in vocab.render_report(found)


@pytest.mark.parametrize(("strip", "entry"), [(True, "cafe"), (False, "café")])
def test_accents_are_stripped_or_kept(tmp_path: Path, strip: bool, entry: str) -> None:
    (tmp_path / "a.txt").write_text("Café crème\n" * 20)
    train(tmp_path / "a.txt", tmp_path / "v.txt", strip_accents=strip)
    assert entry in (tmp_path / "v.txt").read_text().split("\n")
