import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from electra_dist.data import tokenize
from electra_dist.data.tokenize import describe, encode_documents, load_tokenizer
from electra_dist.errors import UserError
from electra_dist.runtime.special_tokens import special_tokens
from tests.made_up import ROBERTA, SPECIALS, trained

WORDS = [
    "the",
    "he",
    "##llo",
    "cat",
    "##s",
    "[",
    "]",
    "mask",
    "sep",
    ".",
    "caf",
    "##e",
    "##é",
    "猫",
    "Cat",
]
VOCAB = [*SPECIALS, *WORDS]


@pytest.fixture
def vocab_path(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    return path


def encode(tokenizer: Tokenizer, *documents: tuple[str, ...]) -> tokenize.EncodedDocuments:
    return encode_documents(tokenizer, describe(tokenizer), documents)


def spell(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.id_to_token(i) for i in encode(tokenizer, (text,)).tokens.tolist()]


def word_starts(tokenizer: Tokenizer, *sentences: str) -> list[str]:
    encoded = encode(tokenizer, sentences)
    offsets = np.concatenate([[0], np.cumsum(encoded.sentence_lengths, dtype=np.int64)])
    bits = tokenize.pack_word_starts(tokenize.word_start_rule(tokenizer), encoded.tokens, offsets)
    assert len(bits) == (len(encoded.tokens) + 7) // 8
    starts = np.unpackbits(bits, bitorder="little", count=len(encoded.tokens))
    tokens = [tokenizer.id_to_token(i) for i in encoded.tokens.tolist()]
    return [f"*{t}" if s else t for t, s in zip(tokens, starts, strict=True)]


def byte_level_alphabet() -> dict[int, str]:
    """GPT-2's character for each byte, by encoding all of them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_vocab_txt_lowercases_strips_accents_and_splits_chinese_by_default(
    vocab_path: Path,
) -> None:
    tokenizer = load_tokenizer(vocab_path)
    assert spell(tokenizer, "Hello THE Cats. Café猫猫") == [
        "he", "##llo", "the", "cat", "##s", ".", "caf", "##e", "猫", "猫"
    ]  # fmt: skip
    facts = describe(tokenizer)
    assert (facts.kind, facts.lowercase, facts.strip_accents) == ("wordpiece", True, True)
    assert facts.vocab_size == len(VOCAB)
    assert (facts.special_ids.pad, facts.special_ids.mask) == (0, 4)


def test_vocab_txt_may_be_cased_and_keep_accents(vocab_path: Path) -> None:
    cased = load_tokenizer(vocab_path, lowercase=False)
    assert spell(cased, "Cat café") == ["Cat", "caf", "##é"]
    facts = describe(cased)
    assert (facts.lowercase, facts.strip_accents) == (False, False)
    accents = load_tokenizer(vocab_path, lowercase=True, strip_accents=False)
    assert spell(accents, "CAFÉ") == ["caf", "##é"]
    assert describe(accents).strip_accents is False


def test_a_literal_special_token_is_text(vocab_path: Path) -> None:
    tokenizer = load_tokenizer(vocab_path)
    assert spell(tokenizer, "the [MASK] [SEP]") == ["the", "[", "mask", "]", "[", "sep", "]"]


@pytest.mark.parametrize("special", [SPECIALS, ROBERTA])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_literal_special_token_is_text_in_other_models(
    tmp_path: Path, kind: str, special: tuple[str, ...]
) -> None:
    tokenizer = load_tokenizer(saved(trained(kind, special), tmp_path))
    ids = describe(tokenizer).special_ids
    encoded = encode(tokenizer, (f"the {' and '.join(special)} cats", *special))
    assert not set(encoded.tokens.tolist()) & {ids.pad, ids.cls, ids.sep, ids.mask}
    assert len(encoded.tokens) > 20


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_roberta_s_names_are_kept_and_known_by_their_role(tmp_path: Path, kind: str) -> None:
    tokenizer = load_tokenizer(saved(trained(kind, ROBERTA), tmp_path))
    facts = describe(tokenizer)
    assert list(facts.special_tokens.values()) == [*ROBERTA]
    ids = {role: tokenizer.token_to_id(name) for role, name in facts.special_tokens.items()}
    assert ids == asdict(facts.special_ids)
    pair = tokenizer.encode("the cats", "the hats")
    assert (pair.tokens[0], pair.tokens[-1]) == ("<s>", "</s>")
    assert pair.tokens.count("</s>") == 2
    assert (pair.type_ids[0], pair.type_ids[-1]) == (0, 1)
    again = load_tokenizer(saved(tokenizer, tmp_path))
    assert again.to_str() == tokenizer.to_str()


def test_the_unknown_token_is_the_model_s_own_whatever_its_name() -> None:
    vocab = {token: i for i, token in enumerate([*SPECIALS, "<nope>", "the"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<nope>"))
    assert special_tokens(json.loads(tokenizer.to_str()))["unk"] == "<nope>"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("text", ["the cats sat on the mats", "hello there, other hats"])
def test_other_models_decode_back_to_the_text(tmp_path: Path, kind: str, text: str) -> None:
    tokenizer = load_tokenizer(saved(trained(kind, ROBERTA), tmp_path))
    assert tokenizer.decode(encode(tokenizer, (text,)).tokens.tolist()) == text


def test_byte_level_bpe_decodes_any_text_back(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(saved(trained("bpe"), tmp_path))
    text = "naïve — 猫が好き, \u200d🙂 <s> [MASK]"
    encoded = encode(tokenizer, (text,))
    assert tokenizer.decode(encoded.tokens.tolist(), skip_special_tokens=False) == text


def test_a_special_token_that_the_model_itself_would_find_becomes_unknown(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(VOCAB)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    loaded = load_tokenizer(saved(tokenizer, tmp_path))
    assert spell(loaded, "the [MASK] cat [SEP]") == ["the", "[UNK]", "cat", "[UNK]"]


def test_tokenizer_json_loses_truncation_and_padding_and_gets_the_bert_template(
    vocab_path: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(vocab_path)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    loaded = load_tokenizer(saved(tokenizer, tmp_path))
    assert spell(loaded, "the cat the cat the") == ["the", "cat", "the", "cat", "the"]
    pair = Tokenizer.from_file(str(saved(loaded, tmp_path))).encode("the cat", "he")
    assert pair.tokens == ["[CLS]", "the", "cat", "[SEP]", "he", "[SEP]"]
    assert pair.type_ids == [0, 0, 0, 0, 1, 1]


def test_sentences_and_documents_without_a_token_vanish(vocab_path: Path) -> None:
    encoded = encode(
        load_tokenizer(vocab_path), ("\x00", "the cat"), (), ("\x01\x02",), ("cats", "\x00", ".")
    )
    assert encoded.sentence_lengths.tolist() == [2, 2, 1]
    assert encoded.document_lengths.tolist() == [1, 2]
    digests = [tokenize.text_digest(text) for text in (("\x00", "the cat"), ("cats", "\x00", "."))]
    assert encoded.text_hashes.astype(">u8").tobytes() == b"".join(digests)
    assert encoded.tokens.dtype == np.uint16


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_ids_are_stored_in_two_bytes_as_long_as_they_fit(vocab_size: int, dtype: type) -> None:
    vocab = [*SPECIALS] + [f"w{i}" for i in range(vocab_size - 5)]
    tokenizer = tokenize.wordpiece_tokenizer({token: i for i, token in enumerate(vocab)})
    encoded = encode(tokenizer, (f"w{vocab_size - 6}",))
    assert encoded.tokens.dtype == dtype
    assert encoded.tokens.tolist() == [vocab_size - 1]


def test_word_starts_of_wordpiece(vocab_path: Path) -> None:
    assert word_starts(load_tokenizer(vocab_path), "Hello cats.", "猫cafe the xyz") == [
        "*he", "##llo", "*cat", "##s", "*.", "*猫", "*caf", "##e", "*the", "*[UNK]"
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "mark"), [("bpe", "Ġ"), ("unigram", "▁")])
def test_word_starts_of_byte_level_bpe_and_unigram(tmp_path: Path, kind: str, mark: str) -> None:
    tokenizer = load_tokenizer(saved(trained(kind), tmp_path))
    assert describe(tokenizer).kind == kind
    found = word_starts(tokenizer, "the cats", "other hats there")
    joined = "".join(found).replace(mark, "")
    assert joined == "*the*cats*other*hats*there"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_in_chinese_each_token_is_a_word_but_no_part_of_a_character(
    tmp_path: Path, kind: str
) -> None:
    text = "我们喜欢猫，我们 cats。"
    tokenizer = load_tokenizer(saved(trained(kind, extra=["我们喜欢猫，我们"]), tmp_path))
    found = word_starts(tokenizer, text)
    words = "".join("\n" + t[1:] if t[0] == "*" else t for t in found).split("\n")[1:]
    if kind == "bpe":
        by_byte = {c: b for b, c in byte_level_alphabet().items()}
        words = [bytes(by_byte[c] for c in word).decode() for word in words]
    assert "".join(words).replace("▁", " ").strip().replace("[UNK]", "。") == text
    # 我们 was merged; 。 was never seen: three tokens of a byte each, or [UNK].
    assert {"我们", "，"} <= set(words)
    assert len(words) >= 5


def test_word_starts_of_bpe_with_an_end_of_word_mark() -> None:
    vocab = [*SPECIALS, "ca", "ts</w>", "the</w>"]
    model = models.BPE({t: i for i, t in enumerate(vocab)}, [], unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.model.end_of_word_suffix = "</w>"
    rule = tokenize.word_start_rule(tokenizer)
    tokens = np.array([5, 6, 7, 5, 6], np.uint16)
    bits = tokenize.pack_word_starts(rule, tokens, np.array([0, 4, 5]))
    assert np.unpackbits(bits, bitorder="little", count=5).tolist() == [1, 0, 1, 1, 1]


def test_casing_is_read_from_a_normalizer_sequence(tmp_path: Path) -> None:
    tokenizer = trained("bpe")
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFD(),
            normalizers.Sequence([normalizers.Lowercase(), normalizers.StripAccents()]),
        ]
    )
    facts = describe(load_tokenizer(saved(tokenizer, tmp_path)))
    assert (facts.lowercase, facts.strip_accents) == (True, True)
    plain = describe(load_tokenizer(saved(trained("bpe"), tmp_path)))
    assert (plain.lowercase, plain.strip_accents) == (False, False)


def test_held_out_share_is_kept_and_depends_on_the_text_alone() -> None:
    digests = b"".join(tokenize.text_digest((f"sentence {i}", "another")) for i in range(20000))
    hashes = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)
    chosen = tokenize.is_held_out(hashes, 0.05)
    assert 0.045 < chosen.mean() < 0.055
    assert tokenize.is_held_out(hashes, 0.10)[chosen].all()
    assert not tokenize.is_held_out(hashes, 0.0).any()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n", r"lacks \[MASK\]"),
        ("vocab.txt", "\n".join([*VOCAB, "the"]), "'the' twice"),
        ("tokenizer.json", '{"model": ', "cannot be read"),
        ("absent.json", None, "does not exist"),
    ],
)
def test_broken_tokenizers_are_the_users_mistake(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path / name)


def test_a_tokenizer_without_a_mask_is_told_how_to_get_one(tmp_path: Path) -> None:
    like_t5 = ["<pad>", "<unk>", "<extra_id_0>", "</s>", "<extra_id_1>"]
    with pytest.raises(UserError, match=r"lacks \[CLS\] \[MASK\].*\['<s>', '<mask>'\]"):
        load_tokenizer(saved(trained("unigram", like_t5), tmp_path))


def test_two_special_tokens_with_one_id_are_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(VOCAB)}, unk_token="[PAD]"))
    with pytest.raises(UserError, match="one id for several"):
        load_tokenizer(saved(tokenizer, tmp_path))


def test_an_unknown_kind_of_model_is_the_users_mistake(tmp_path: Path) -> None:
    words = models.WordLevel({t: i for i, t in enumerate(VOCAB)}, unk_token="[UNK]")
    loaded = load_tokenizer(saved(Tokenizer(words), tmp_path))
    with pytest.raises(UserError, match="WordLevel"):
        describe(loaded)


def test_a_folder_with_a_tokenizer_is_a_tokenizer(vocab_path: Path) -> None:
    assert spell(load_tokenizer(vocab_path.parent), "the cat") == ["the", "cat"]
