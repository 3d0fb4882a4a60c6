"""Training a WordPiece vocabulary, the same one every time.

The trainer of the tokenizers library alone gives another vocabulary at each run: it numbers the
"##x" characters, and breaks ties at the alphabet's limit, in the order of a hash table. Here the
characters are counted first and handed to it in a fixed order; what it does after that depends on
counts and ids only (equal over processes and thread counts).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from electra_dist.data import sources, store
from electra_dist.data.fertility import Fertility, render_fertility
from electra_dist.data.parts import SourceInput
from electra_dist.data.sampling import Report, sample_documents
from electra_dist.data.tokenize import (
    SPECIAL_TOKENS,
    describe,
    is_held_out,
    load_tokenizer,
    text_digest,
    wordpiece_tokenizer,
)
from electra_dist.data.word_counts import count_characters, count_words, repeated
from electra_dist.errors import UserError

MIN_VOCAB_SIZE = 64
# Rarer characters become [UNK]: on web text they are thousands, each seen once, and each would cost
# one or two entries.
CHARACTER_COVERAGE = 0.9999
# Enough for three figures of each ratio, a few seconds of work.
_MEASURED_BYTES = 16 << 20
_FEW_WORDS = 10_000


def text_input(
    inputs: Sequence[str], source: str = "text", text_field: str = "text"
) -> SourceInput:
    """What --input, --source and --field name (UserError where there is no such file or source)."""
    return SourceInput(
        kind=source,
        options=sources.SourceOptions(text_field=text_field),
        files=sources.find_files(inputs, source),
    )


def train_vocab(
    text: SourceInput,
    out: str | Path,
    *,
    vocab_size: int = 8192,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    sample_bytes: int = 256 << 20,
    held_out_share: float = 0.005,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """Trains a WordPiece vocabulary; writes `out` as vocab.txt or, for .json, tokenizer.json.

    It is trained on about `sample_bytes` of the text, without the documents that a corpus would
    hold out, and then measured on these (on the text itself where there are none).

    Returns what was made, JSON-able: `vocab_size` is smaller than asked for when the text has not
    that many frequent words. Raises UserError for an input without text, another suffix, or an
    `out` that exists.
    """
    out = Path(out)
    _check_out(out)
    text_of = _Sample(text, sample_bytes, held_out_share, report)
    tokenizer = train_wordpiece(text_of.train_sentences(), vocab_size, lowercase, strip_accents)
    vocab = tokenizer.get_vocab()
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".json":
        content = tokenizer.to_str(pretty=True)
    else:
        content = "".join(f"{token}\n" for token in sorted(vocab, key=lambda t: vocab[t]))
    store.write_bytes(out, content.encode())
    measured = Fertility(tokenizer)
    measured.add(text_of.held_out or sample_documents([text], _MEASURED_BYTES))
    return {
        "file": str(out),
        "vocab_size": len(vocab),
        "train_documents": text_of.num_documents,
        "train_bytes": text_of.num_bytes,
        "held_out": bool(text_of.held_out),
        "report": measured.result(),
    }


def vocab_report(
    tokenizer: str | Path,
    text: SourceInput,
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    sample_bytes: int = 16 << 20,
) -> dict[str, Any]:
    """How a tokenizer fits about `sample_bytes` of a text, JSON-able.

    `lowercase` and `strip_accents` are for a vocab.txt. Raises UserError for a tokenizer that is
    missing or lacks a special token.
    """
    loaded = load_tokenizer(tokenizer, lowercase, strip_accents)
    facts = describe(loaded)
    measured = Fertility(loaded)
    measured.add(sample_documents([text], sample_bytes))
    return {
        "file": str(tokenizer),
        "kind": facts.kind,
        "vocab_size": facts.vocab_size,
        "special_tokens": facts.special_tokens,
        "special_ids": asdict(facts.special_ids),
        "report": measured.result(),
    }


def render_trained(made: dict[str, Any]) -> str:
    """The result of `train_vocab` as a few aligned lines."""
    sample = f"{made['train_documents']:,} documents, {made['train_bytes'] / 1e6:,.1f} MB"
    of_what = "held-out documents" if made["held_out"] else "the text itself: none is held out"
    if made["report"]["words"] < _FEW_WORDS:
        of_what += "; too few words for a steady figure: raise --held-out-share"
    rows = [
        ("vocabulary", f"{made['file']}: {made['vocab_size']:,} entries"),
        ("trained on", sample),
        ("measured", of_what),
    ]
    return _aligned(rows + render_fertility(made["report"]))


def render_report(found: dict[str, Any]) -> str:
    """The result of `vocab_report` as a few aligned lines."""
    ids = (f"{token} {found['special_ids'][r]}" for r, token in found["special_tokens"].items())
    rows = [
        ("tokenizer", f"{found['file']}: {found['kind']}, {found['vocab_size']:,} ids"),
        ("special", ", ".join(ids)),
    ]
    return _aligned(rows + render_fertility(found["report"]))


def _aligned(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<12} {text}" for name, text in rows)


class _Sample:
    """A sample of the text, read once: to train on, and what is held out of it."""

    def __init__(
        self, text: SourceInput, sample_bytes: int, held_out_share: float, report: Report
    ) -> None:
        self.held_out: list[sources.Document] = []
        self.num_documents = self.num_bytes = 0
        self._documents = sample_documents([text], sample_bytes, report)
        self._held_out_share = held_out_share
        self._held_out_characters = 0

    def train_sentences(self) -> Iterator[str]:
        for document in self._documents:
            digest = np.frombuffer(text_digest(document.sentences), ">u8").reshape(1, 2)
            if is_held_out(digest, self._held_out_share)[0]:
                if self._held_out_characters < _MEASURED_BYTES:
                    self.held_out.append(document)
                    self._held_out_characters += sum(map(len, document.sentences))
                continue
            self.num_documents += 1
            self.num_bytes += sum(len(sentence.encode()) for sentence in document.sentences)
            yield from document.sentences


def _check_out(out: Path) -> None:
    if out.suffix not in (".txt", ".json"):
        raise UserError(
            f"--out {out} must end in .txt (one token a line) or .json (tokenizer.json)"
        )
    if out.exists():
        raise UserError(f"--out {out} exists already: remove it or choose another name")


def train_wordpiece(
    sentences: Iterable[str],
    vocab_size: int = 8192,
    lowercase: bool = True,
    strip_accents: bool | None = None,
) -> Tokenizer:
    """A BERT WordPiece tokenizer trained on sentences, which are read once.

    At most `vocab_size` entries: the five special tokens first, then characters, then words and
    pieces seen at least twice. Raises UserError when there is no text or `vocab_size` is below
    `MIN_VOCAB_SIZE`.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"a vocabulary of {vocab_size} entries is too small: use at least {MIN_VOCAB_SIZE}"
        )
    normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lowercase
    )
    splitter = pre_tokenizers.BertPreTokenizer()
    words = count_words(sentences, normalizer, splitter)
    alphabet, inside_words = alphabet_of(count_characters(words), vocab_size, normalizer, splitter)
    if not alphabet:
        raise UserError(
            "the input holds no text to train a vocabulary on: give files with documents"
        )
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = wordpiece_trainer(vocab_size, alphabet, inside_words)
    tokenizer.train_from_iterator(repeated(words), trainer=trainer)
    return wordpiece_tokenizer(tokenizer.get_vocab(), lowercase, strip_accents)


def wordpiece_trainer(
    vocab_size: int, alphabet: list[str], inside_words: list[str]
) -> trainers.WordPieceTrainer:
    """The library's trainer, told which characters get an entry (see `alphabet_of`)."""
    return trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        # Given as special tokens so that they get their ids first and in this order; the tokenizer
        # that is rebuilt from the vocabulary knows them as plain entries.
        special_tokens=[*SPECIAL_TOKENS.values(), *(f"##{c}" for c in inside_words)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )


def alphabet_of(
    counts: Counter[str], vocab_size: int, normalizer: Normalizer, splitter: PreTokenizer
) -> tuple[list[str], list[str]]:
    """The characters that get an entry, and those of them that get a "##" entry, too; sorted.

    They are the commonest up to `CHARACTER_COVERAGE` of the text, and leave room for words.
    """
    by_count = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    wanted = CHARACTER_COVERAGE * sum(counts[c] for c in by_count)
    covered, alphabet = 0, []
    for character in by_count[: (vocab_size - len(SPECIAL_TOKENS)) // 2]:
        if covered >= wanted:
            break
        alphabet.append(character)
        covered += counts[character]
    # Punctuation and Chinese characters always stand alone, so "##" forms of them would be wasted
    # entries.
    inside_words = [
        c
        for c in alphabet
        if len(splitter.pre_tokenize_str(normalizer.normalize_str(f"a{c}a"))) == 1
    ]
    return sorted(alphabet), sorted(inside_words)
