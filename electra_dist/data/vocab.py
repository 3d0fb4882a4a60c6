"""Training a WordPiece vocabulary, the same one every time.

The trainer of the tokenizers library alone gives another vocabulary at each run: it numbers the
"##x" characters, and breaks ties at the alphabet's limit, in the order of a hash table. Here the
characters are counted first and handed to it in a fixed order; what it does after that depends on
counts and ids only (equal over processes and thread counts).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from electra_dist.data import sources, store
from electra_dist.data.tokenize import SPECIAL_TOKENS, wordpiece_tokenizer
from electra_dist.data.word_counts import count_characters, count_words, repeated
from electra_dist.errors import UserError

MIN_VOCAB_SIZE = 64
# Rarer characters become [UNK]: on web text they are thousands, each seen once, and each would cost
# one or two entries.
CHARACTER_COVERAGE = 0.9999


def train_vocab(
    inputs: Sequence[str],
    out: str | Path,
    *,
    vocab_size: int = 8192,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    source: str = "text",
    text_field: str = "text",
) -> int:
    """Trains a WordPiece vocabulary; writes `out` as vocab.txt or, for .json, tokenizer.json.

    Returns the number of entries, which is smaller than `vocab_size` when the text has not that
    many frequent words. Raises UserError for a missing input, an input without text, another
    suffix, or an `out` that exists.
    """
    out = Path(out)
    if out.suffix not in (".txt", ".json"):
        raise UserError(
            f"--out {out} must end in .txt (one token a line) or .json (tokenizer.json)"
        )
    if out.exists():
        raise UserError(f"--out {out} exists already: remove it or choose another name")
    files = sources.find_files(inputs)
    options = sources.SourceOptions(text_field=text_field)
    tokenizer = train_wordpiece(
        lambda: read_sentences(source, files, options), vocab_size, lowercase, strip_accents
    )
    vocab = tokenizer.get_vocab()
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".json":
        store.write_bytes(out, tokenizer.to_str(pretty=True).encode())
    else:
        store.write_bytes(
            out, "".join(f"{t}\n" for t in sorted(vocab, key=lambda t: vocab[t])).encode()
        )
    return len(vocab)


def read_sentences(
    source: str, files: Sequence[sources.InputFile], options: sources.SourceOptions
) -> Iterator[str]:
    """All usable sentences of the files; bad records are left out."""
    for file in files:
        for document in sources.read(source, file, options):
            yield from document.sentences


def train_wordpiece(
    read: Callable[[], Iterable[str]],
    vocab_size: int = 8192,
    lowercase: bool = True,
    strip_accents: bool | None = None,
) -> Tokenizer:
    """A BERT WordPiece tokenizer trained on the sentences of `read()`, which is called twice.

    At most `vocab_size` entries: the five special tokens first, then characters, then words and
    pieces seen at least twice. Raises UserError when there is no text or `vocab_size` is below
    `MIN_VOCAB_SIZE`.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(f"--vocab-size {vocab_size} is too small: use at least {MIN_VOCAB_SIZE}")
    normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lowercase
    )
    splitter = pre_tokenizers.BertPreTokenizer()
    words = count_words(read(), normalizer, splitter)
    counts = count_characters(words)
    special = list(SPECIAL_TOKENS.values())
    alphabet = _alphabet(counts, (vocab_size - len(special)) // 2)
    if not alphabet:
        raise UserError(
            "the input holds no text to train a vocabulary on: give files with documents"
        )
    # Punctuation and Chinese characters always stand alone, so "##" forms of them would be wasted
    # entries.
    inside_words = [
        c
        for c in alphabet
        if len(splitter.pre_tokenize_str(normalizer.normalize_str(f"a{c}a"))) == 1
    ]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        # Given as special tokens so that they get their ids first and in this order; the rebuilt
        # tokenizer below knows them as plain entries.
        special_tokens=special + [f"##{character}" for character in inside_words],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(repeated(words), trainer=trainer)
    return wordpiece_tokenizer(tokenizer.get_vocab(), lowercase, strip_accents)


def _alphabet(counts: Counter[str], limit: int) -> list[str]:
    """The commonest characters up to `CHARACTER_COVERAGE` of the text, at most `limit`, sorted."""
    by_count = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    wanted = CHARACTER_COVERAGE * sum(counts[c] for c in by_count)
    covered, alphabet = 0, []
    for character in by_count[:limit]:
        if covered >= wanted:
            break
        alphabet.append(character)
        covered += counts[character]
    return sorted(alphabet)
