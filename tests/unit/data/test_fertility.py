from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from electra_dist.data.fertility import Fertility, render_fertility
from electra_dist.data.sources import Document
from electra_dist.data.tokenize import load_tokenizer
from electra_dist.data.vocab import train_wordpiece

SENTENCES = [
    "The cats — both of them — sat on the mat, didn't they?",
    "A café;  two   spaces 1,000 times!",
    "we we we 猫 the",
]
TEXT = ["the cats sat on the mat", "a cafe of two times", "we both sat, the mat did not"] * 20


def bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer=trainer)
    return tokenizer


def by_word(tokenizer: Tokenizer, sentences: Sequence[str]) -> tuple[int, int, int, int]:
    """Words, tokens, words with letters, whole words: one word at a time, by encoding it alone."""
    mark = tokenizer.token_to_id("<unk>")
    unknown = tokenizer.token_to_id("[UNK]") if mark is None else mark
    words = tokens = written = whole = 0
    for sentence in sentences:
        for number, word in enumerate(sentence.split()):
            before = " " if number else ""
            encoding = tokenizer.encode(before + word, add_special_tokens=False)
            words += 1
            tokens += len(encoding.ids)
            if any(c.isalnum() for c in word):
                written += 1
                spans = [(before + word)[a:b] for a, b in encoding.offsets]
                letters = sum(any(c.isalnum() for c in span) for span in spans)
                whole += letters == 1 and unknown not in encoding.ids
    return words, tokens, written, whole


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("batch", [1, 2, 2048])
def test_counts_are_those_of_each_word_by_itself(
    tmp_path: Path, kind: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("electra_dist.data.fertility._BATCH_SENTENCES", batch)
    tokenizer = train_wordpiece(TEXT, 90) if kind == "wordpiece" else bpe()
    tokenizer.save(str(tmp_path / "t.json"))
    tokenizer = load_tokenizer(tmp_path / "t.json")
    sentences = SENTENCES if kind == "wordpiece" else [s.replace("   ", " ") for s in SENTENCES]
    sentences = [s.replace("  ", " ") for s in sentences] if kind == "bpe" else sentences
    measured = Fertility(tokenizer)
    measured.add([Document(tuple(sentences[:2])), Document(tuple(sentences[2:]))])
    report = measured.result()
    words, tokens, written, whole = by_word(tokenizer, sentences)
    assert (report["documents"], report["words"], report["tokens"]) == (2, words, tokens)
    assert report["tokens_per_word"] == tokens / words
    assert report["whole_word_share"] == whole / written
    assert 0 < whole < written
    characters, size = (sum(map(len, s)) for s in (sentences, [x.encode() for x in sentences]))
    assert (report["characters_per_token"], report["bytes_per_token"]) == (
        characters / tokens,
        size / tokens,
    )


def test_unknown_tokens_are_counted_and_named() -> None:
    measured = Fertility(train_wordpiece(TEXT, 90))
    measured.add([Document(("the ☃ sat ☃", "猫")), Document(())])
    report = measured.result()
    assert report["unknown_token_share"] == 3 / 5
    assert report["commonest_unknown"] == [["☃", 2], ["猫", 1]]
    shown = dict(render_fertility(report))
    assert shown[""] == "the commonest: ☃ (2), 猫 (1)"
    assert shown["unknown"] == "60.000 % of the tokens"


def test_no_text_at_all_gives_zeros() -> None:
    measured = Fertility(train_wordpiece(TEXT, 90))
    measured.add([])
    report = measured.result()
    assert report["tokens_per_word"] == report["words"] == 0
    assert report["commonest_unknown"] == []
