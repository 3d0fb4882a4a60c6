"""From text to token ids: reading and checking a tokenizer, encoding documents by sentences."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from electra_dist.data.store import Array, SpecialIds
from electra_dist.errors import UserError
from electra_dist.runtime.special_tokens import NAMES, special_tokens

SPECIAL_TOKENS = {role: names[0] for role, names in NAMES.items()}
"""BERT's names: those of the vocabularies that are trained here."""
# How a token begins in scripts without spaces: Chinese characters, kana, full-width punctuation.
_SPACELESS = (
    "[\u3000-\u30ff\u31f0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
# The same by the first byte of UTF-8 as byte-level BPE spells it: U+3000 to 9FFF, F000 to FFFF and
# from 10000 on. A token that begins within a character starts no word.
_SPACELESS_BYTES = "[\xe3-\xe9\xef\xf0]"
# Encodings take about 100 bytes a token: a few thousand sentences stay within a core's cache.
_BATCH_SENTENCES = 2048
_KINDS = {"WordPiece": "wordpiece", "BPE": "bpe", "Unigram": "unigram"}


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """What the manifest records of a tokenizer."""

    kind: str
    """"wordpiece", "bpe" or "unigram"."""
    lowercase: bool
    strip_accents: bool
    vocab_size: int
    """Largest id + 1."""
    special_ids: SpecialIds
    special_tokens: dict[str, str]
    """Role -> how this vocabulary calls it: "cls" -> "[CLS]", or "<s>" as in RoBERTa's."""

    @property
    def dtype(self) -> npt.DTypeLike:
        """The store's token type: uint16 as long as every id fits."""
        return np.uint16 if self.vocab_size <= 65536 else np.uint32


@dataclass(frozen=True, kw_only=True)
class WordStartRule:
    """Which tokens start a word."""

    table: npt.NDArray[np.bool_]
    """bool [vocab_size]."""
    of_previous_token: bool
    """The table says which tokens end a word (BPE with an end-of-word suffix)."""


@dataclass(frozen=True, kw_only=True)
class EncodedDocuments:
    """Encoded documents, flat. D documents that hold a token, S sentences, T tokens."""

    tokens: Array
    """uint16 or uint32 [T]."""
    sentence_lengths: Array
    """uint32 [S] in tokens, each at least 1."""
    document_lengths: Array
    """uint32 [D] in sentences, each at least 1."""
    text_hashes: Array
    """uint64 [D, 2]: xxh3-128 of each document's text, the high half first."""

    def select(self, chosen: npt.NDArray[np.bool_]) -> tuple[Array, Array, Array]:
        """Tokens, sentence lengths and document lengths of the chosen documents (bool [D])."""
        if chosen.all():
            return self.tokens, self.sentence_lengths, self.document_lengths
        sentences = np.repeat(chosen, self.document_lengths)
        tokens = np.repeat(sentences, self.sentence_lengths)
        return (
            self.tokens[tokens],
            self.sentence_lengths[sentences],
            self.document_lengths[chosen],
        )


def load_tokenizer(
    path: str | Path, lowercase: bool = True, strip_accents: bool | None = None
) -> Tokenizer:
    """Reads a tokenizer.json or a WordPiece vocab.txt (or a folder that holds one) and prepares it.

    `lowercase` and `strip_accents` (None: follows lowercase) are for a vocab.txt; a tokenizer.json
    says it itself. The result has no truncation or padding, encodes a literal "[MASK]" as text, and
    adds [CLS] A [SEP] B [SEP] when asked for special tokens, by the names that its vocabulary has
    for them (RoBERTa's: <s> A </s> B </s>). Raises UserError when the file is missing, broken or
    lacks a special token.
    """
    path = tokenizer_file(path)
    if path.suffix == ".json":
        try:
            tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"tokenizer {path} cannot be read ({error}): give a tokenizer.json"
            ) from None
    else:
        tokenizer = wordpiece_tokenizer(read_vocab(path), lowercase, strip_accents, str(path))
    return _prepare(tokenizer, str(path))


def wordpiece_tokenizer(
    vocab: dict[str, int],
    lowercase: bool = True,
    strip_accents: bool | None = None,
    name: str = "vocabulary",
) -> Tokenizer:
    """A BERT WordPiece tokenizer: text cleaned, split at punctuation and Chinese characters.

    `name` is what an error calls it.
    """
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return _prepare(tokenizer, name)


def tokenizer_file(path: str | Path) -> Path:
    """The file itself, or the one in a folder (UserError: there is none)."""
    path = Path(path)
    candidates = [path / "tokenizer.json", path / "vocab.txt"] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(
        f"tokenizer {path} does not exist: give a tokenizer.json, a vocab.txt, or `train`"
    )


def tokenizer_sha256(path: str | Path) -> str:
    """sha256 of the file's bytes, hexadecimal: what a corpus, a run and an export compare."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def describe(tokenizer: Tokenizer) -> TokenizerFacts:
    """Kind, casing, size and special ids of a prepared tokenizer (UserError for another kind)."""
    content = json.loads(tokenizer.to_str())
    kind = content["model"]["type"]
    if kind not in _KINDS:
        raise UserError(f"tokenizer model {kind} is not supported: use {', '.join(_KINDS)}")
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    names = special_tokens(content)
    ids = {role: vocab[name] for role, name in names.items()}
    parts = list(_normalizers(content["normalizer"]))
    lowercase = any(p["type"] == "Lowercase" or p.get("lowercase") for p in parts)
    strips = (
        p["type"] == "StripAccents" or p.get("strip_accents", False) or _strips_by_default(p)
        for p in parts
    )
    return TokenizerFacts(
        kind=_KINDS[kind],
        lowercase=lowercase,
        strip_accents=any(strips),
        vocab_size=max(vocab.values()) + 1,
        special_ids=SpecialIds(**ids),
        special_tokens=names,
    )


def word_start_rule(tokenizer: Tokenizer) -> WordStartRule:
    """Word starts by spelling: no "##" (WordPiece), "Ġ" (byte-level BPE) or "▁" (Unigram) in front.

    Chinese and Japanese write no spaces: there each token is a word, as with WordPiece, which
    splits at Chinese characters. A vocabulary with no such mark makes every token a word.
    """
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    spelling = {id_: token for token, id_ in tokenizer.get_vocab(with_added_tokens=True).items()}
    tokens = [spelling.get(id_, "") for id_ in range(max(spelling) + 1)]
    prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    if prefix:
        table = [not token.startswith(prefix) for token in tokens]
    elif suffix:
        table = [token.endswith(suffix) for token in tokens]
    else:
        marks = {mark: sum(token.startswith(mark) for token in tokens) for mark in "Ġ▁"}
        mark = max(marks, key=lambda m: marks[m])
        spaceless = _SPACELESS_BYTES if mark == "Ġ" else _SPACELESS
        starts = re.compile(f"{mark}|{spaceless}")
        table = [not marks[mark] or bool(starts.match(token)) for token in tokens]
    return WordStartRule(table=np.array(table), of_previous_token=bool(suffix and not prefix))


def pack_word_starts(rule: WordStartRule, tokens: Array, sentence_offsets: Array) -> Array:
    """The word-start bits of a shard: uint8 [ceil(T / 8)], little bit order.

    A sentence's first token always starts a word.
    """
    starts = np.empty(len(tokens), np.bool_)
    if rule.of_previous_token:
        np.take(rule.table, tokens[:-1], out=starts[1:])
    else:
        np.take(rule.table, tokens, out=starts)
    starts[sentence_offsets[:-1]] = True
    return np.packbits(starts, bitorder="little")


def encode_documents(
    tokenizer: Tokenizer, facts: TokenizerFacts, documents: Sequence[tuple[str, ...]]
) -> EncodedDocuments:
    """Encodes documents (tuples of sentences) without special tokens.

    Sentences and documents that give no token vanish.
    """
    sentences = list(chain.from_iterable(documents))
    batches = range(0, len(sentences), _BATCH_SENTENCES)
    encoded = [
        _encode_sentences(tokenizer, facts, sentences[i : i + _BATCH_SENTENCES]) for i in batches
    ]
    tokens = np.concatenate([np.zeros(0, facts.dtype), *(tokens for tokens, _ in encoded)])
    lengths = np.concatenate([np.zeros(0, np.uint32), *(lengths for _, lengths in encoded)])
    # A vocabulary may spell "[MASK]" from text without the added-token path (Unigram, or a
    # tokenizer that splits at spaces only): such ids would be taken for ours in training.
    special = facts.special_ids
    for reserved in (special.pad, special.cls, special.sep, special.mask):
        tokens[tokens == reserved] = special.unk

    owner = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    kept_sentences = np.bincount(owner[lengths > 0], minlength=len(documents))
    kept = np.flatnonzero(kept_sentences)
    digests = b"".join(text_digest(documents[i]) for i in kept.tolist())
    return EncodedDocuments(
        tokens=tokens,
        sentence_lengths=lengths[lengths > 0],
        document_lengths=kept_sentences[kept].astype(np.uint32),
        text_hashes=np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2),
    )


def text_digest(sentences: Sequence[str]) -> bytes:
    """xxh3-128 of a document's text: what exact duplicates share, whatever file they are in."""
    return xxhash.xxh3_128_digest("\n".join(sentences).encode())


def is_held_out(text_hashes: Array, share: float) -> npt.NDArray[np.bool_]:
    """Bool [D] by the text alone (the hash scaled to [0, 1)): copies are held out together."""
    return text_hashes[:, 0] < np.uint64(share * 2**64)


def _encode_sentences(
    tokenizer: Tokenizer, facts: TokenizerFacts, sentences: list[str]
) -> tuple[Array, Array]:
    encodings = tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
    lengths = np.fromiter(map(len, encodings), np.uint32, len(encodings))
    ids = chain.from_iterable(encoding.ids for encoding in encodings)
    return np.fromiter(ids, facts.dtype, int(lengths.sum())), lengths


def read_vocab(path: Path) -> dict[str, int]:
    """Token -> id, a token a line.

    Raises:
        UserError: not UTF-8, or a token stands there twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"vocabulary {path} is not UTF-8: give one token a line") from None
    # Not splitlines(): vocabularies hold U+2028 and the like as tokens.
    lines = [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")]
    vocab = {token: id_ for id_, token in enumerate(lines)}
    if len(vocab) != len(lines):
        twice = next(token for id_, token in enumerate(lines) if vocab[token] != id_)
        raise UserError(f"vocabulary {path} holds {twice!r} twice: each line must be another token")
    return vocab


def _prepare(tokenizer: Tokenizer, name: str) -> Tokenizer:
    content = json.loads(tokenizer.to_str())
    names = special_tokens(content)
    _check_special_tokens(tokenizer, names, name)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in names.values()]
    )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    cls, sep = names["cls"], names["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    tokenizer.encode_special_tokens = True
    return tokenizer


def _check_special_tokens(tokenizer: Tokenizer, names: dict[str, str], name: str) -> None:
    if missing := [role for role in SPECIAL_TOKENS if role not in names]:
        lacking = " ".join(SPECIAL_TOKENS[role] for role in missing)
        like_roberta = any(token.startswith("<") for token in names.values())
        add = [NAMES[role][like_roberta] for role in missing]
        raise UserError(
            f"tokenizer {name} lacks {lacking}: add a line for each to a vocab.txt, or"
            f" tokenizer.add_special_tokens({add}) and save it"
        )
    ids = {token: tokenizer.token_to_id(token) for token in names.values()}
    if len(set(ids.values())) < len(SPECIAL_TOKENS):
        raise UserError(
            f"tokenizer {name} has one id for several special tokens ({ids}):"
            " give one in which each has its own"
        )


def _normalizers(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if part is not None and part["type"] == "Sequence":
        for inner in part["normalizers"]:
            yield from _normalizers(inner)
    elif part is not None:
        yield part


def _strips_by_default(part: dict[str, Any]) -> bool:
    return part["type"] == "BertNormalizer" and part["strip_accents"] is None and part["lowercase"]
