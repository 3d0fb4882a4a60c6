"""How well a vocabulary fits a text: fertility, unknown tokens, length of tokens.

Words are what white space separates. Chinese and Japanese write none: there look at characters per
token and at unknown tokens. Shapes: C characters of a batch, T its tokens, W its words.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from electra_dist.data.sources import Document
from electra_dist.data.tokenize import describe

_BATCH_SENTENCES = 2048
_NUM_UNKNOWN = 10


class Fertility:
    """Measures sentences as they come; `result` says what was found."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """`tokenizer` is one of `load_tokenizer`."""
        self._tokenizer = tokenizer
        self._unknown_id = describe(tokenizer).special_ids.unk
        self._counts: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()

    def add(self, documents: Iterable[Document]) -> None:
        """Measures documents."""

        def sentences() -> Iterator[str]:
            for document in documents:
                self._counts["documents"] += 1
                yield from document.sentences

        waiting = sentences()
        while batch := list(islice(waiting, _BATCH_SENTENCES)):
            self._add_batch(batch)

    def result(self) -> dict[str, Any]:
        """Counts and ratios, JSON-able; a ratio over nothing is 0."""
        counts = self._counts
        names = ("documents", "words", "tokens", "characters", "bytes")
        ratios = {
            "tokens_per_word": ("tokens", "words"),
            "whole_word_share": ("whole_words", "written_words"),
            "unknown_token_share": ("unknown_tokens", "tokens"),
            "characters_per_token": ("characters", "tokens"),
            "bytes_per_token": ("bytes", "tokens"),
        }
        by_count = sorted(self._unknown.items(), key=lambda item: (-item[1], item[0]))
        return {
            **{name: counts[name] for name in names},
            **{name: counts[a] / max(counts[b], 1) for name, (a, b) in ratios.items()},
            "commonest_unknown": [[text, count] for text, count in by_count[:_NUM_UNKNOWN]],
        }

    def _add_batch(self, sentences: list[str]) -> None:
        encodings = self._tokenizer.encode_batch(sentences, add_special_tokens=False)
        text = "\n".join(sentences)
        codes_C = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        is_space_C, is_written_C = (table[codes_C] for table in _character_tables())
        starts_C = ~is_space_C & np.concatenate([[True], is_space_C[:-1]])
        word_C = np.cumsum(starts_C) - 1
        num_words = int(starts_C.sum())

        spans_T2, ids_T = _spans(sentences, encodings)
        first_T = spans_T2[:, 0]
        end_T = np.maximum(spans_T2[:, 1], first_T + 1)
        written_before = np.concatenate([[0], np.cumsum(is_written_C)])
        is_written_T = written_before[end_T] > written_before[first_T]
        is_unknown_T = ids_T == self._unknown_id
        word_T = word_C[end_T - 1]  # by its last character: "Ġ" and "▁" begin with a space
        # Whole: but for punctuation, the word is one known token.
        tokens_W = np.bincount(word_T[is_written_T], minlength=num_words)
        unknown_W = np.bincount(word_T[is_unknown_T], minlength=num_words)
        written_W = np.bincount(word_C[is_written_C], minlength=num_words) > 0

        self._counts.update(
            words=num_words,
            tokens=len(ids_T),
            characters=len(text) - (len(sentences) - 1),
            bytes=sum(len(sentence.encode()) for sentence in sentences),
            unknown_tokens=int(is_unknown_T.sum()),
            written_words=int(written_W.sum()),
            whole_words=int((written_W & (tokens_W == 1) & (unknown_W == 0)).sum()),
        )
        self._unknown.update(
            text[start:end].strip() for start, end in spans_T2[is_unknown_T].tolist()
        )


def render_fertility(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The result as names and what to print behind them."""
    counts = (f"{report[name]:,} {name}" for name in ("documents", "words", "tokens", "bytes"))
    characters = report["characters_per_token"]
    whole = f"{100 * report['whole_word_share']:.1f} % of the words stay whole"
    rows = [
        ("measured on", ", ".join(counts)),
        ("fertility", f"{report['tokens_per_word']:.3f} tokens per word, {whole}"),
        ("unknown", f"{100 * report['unknown_token_share']:.3f} % of the tokens"),
        ("a token", f"{characters:.2f} characters, {report['bytes_per_token']:.2f} bytes"),
    ]
    if report["commonest_unknown"]:
        found = (f"{text} ({count:,})" for text, count in report["commonest_unknown"])
        rows.insert(3, ("", f"the commonest: {', '.join(found)}"))
    return rows


def _spans(
    sentences: list[str], encodings: list[Encoding]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each token where it stands in the sentences joined by line ends (int64 [T, 2]); ids."""
    spans = [np.zeros((0, 2), np.int64)]
    ids: list[int] = []
    offset = 0
    for sentence, encoding in zip(sentences, encodings, strict=True):
        if found := encoding.offsets:
            spans.append(np.array(found, np.int64) + offset)
            ids += encoding.ids
        offset += len(sentence) + 1
    return np.concatenate(spans), np.array(ids, np.int64)


@cache
def _character_tables() -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Bool [0x110000] each: white space; letters and digits."""
    characters = [chr(code) for code in range(0x110000)]
    return (
        np.fromiter((c.isspace() for c in characters), np.bool_),
        np.fromiter((c.isalnum() for c in characters), np.bool_),
    )
