import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from electra_dist.data import vocab
from electra_dist.data.tokenize import describe, load_tokenizer
from electra_dist.errors import UserError


def write_text(path: Path, num_sentences: int = 400) -> Path:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(150)]
    lines = [" ".join(rng.choices(words, k=8)).capitalize() + ". 猫é" for _ in range(num_sentences)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_the_trained_vocabulary_has_the_size_and_spells_the_text(tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt")
    size = vocab.train_vocab([str(text)], tmp_path / "vocab.txt", vocab_size=200)
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
    vocab.train_vocab([str(text)], tmp_path / "v.txt", vocab_size=150, lowercase=False)
    vocab.train_vocab([str(text)], tmp_path / "v.json", vocab_size=150, lowercase=False)
    a = load_tokenizer(tmp_path / "v.txt", lowercase=False)
    b = load_tokenizer(tmp_path / "v.json")
    assert a.to_str() == b.to_str()
    assert describe(b).lowercase is False
    assert any(token[0].isupper() for token in b.get_vocab())


def test_training_gives_the_same_vocabulary_in_every_process(tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt")
    code = (
        "import sys; from electra_dist.data.vocab import train_vocab;"
        "train_vocab([sys.argv[1]], sys.argv[2], vocab_size=200)"
    )
    found = set()
    for run, parallel in enumerate(("true", "false")):
        out = tmp_path / f"{run}.txt"
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": parallel}
        command = [sys.executable, "-c", code, str(text), str(out)]
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[3])
        found.add(out.read_bytes())
    vocab.train_vocab([str(text)], tmp_path / "here.txt", vocab_size=200)
    found.add((tmp_path / "here.txt").read_bytes())
    assert len(found) == 1


def test_a_small_text_gives_a_smaller_vocabulary_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\none two\n")
    size = vocab.train_vocab([str(tmp_path / "a.txt")], tmp_path / "v.txt")
    assert size < 50
    assert {"one", "two"} <= set((tmp_path / "v.txt").read_text().split("\n"))


def test_rare_characters_never_crowd_out_the_words(tmp_path: Path) -> None:
    many = "".join(chr(0x4E00 + i) for i in range(500))
    (tmp_path / "a.txt").write_text("some words here\n" * 50 + many, encoding="utf-8")
    size = vocab.train_vocab([str(tmp_path / "a.txt")], tmp_path / "v.txt", vocab_size=100)
    assert size <= 100
    assert "words" in (tmp_path / "v.txt").read_text(encoding="utf-8").split("\n")


def test_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "v.txt").write_text("")
    empty = [str(tmp_path / "empty.txt")]
    with pytest.raises(UserError, match="no text"):
        vocab.train_vocab(empty, tmp_path / "w.txt")
    with pytest.raises(UserError, match="exists already"):
        vocab.train_vocab(empty, tmp_path / "v.txt")
    with pytest.raises(UserError, match=r"must end in \.txt"):
        vocab.train_vocab(empty, tmp_path / "v.model")
    with pytest.raises(UserError, match="--vocab-size 10 "):
        vocab.train_vocab(empty, tmp_path / "w.txt", vocab_size=10)
