"""Writing the token shards of one split as they fill."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from electra_dist.data.store import Array, write_arrays
from electra_dist.data.tokenize import EncodedDocuments, WordStartRule, pack_word_starts


class ShardWriter:
    """Collects documents, writes a shard when the next one would not fit: none crosses shards."""

    def __init__(
        self, folder: Path, prefix: str, vocab_size: int, rule: WordStartRule, max_tokens: int
    ) -> None:
        self.unigram_counts = np.zeros(vocab_size, np.int64)
        """int64 [vocab_size] over everything added."""
        self.num_documents = 0
        self._folder = folder
        self._prefix = prefix
        self._rule = rule
        self._max_tokens = max_tokens
        self._shards: list[dict[str, Any]] = []
        self._clear()

    def add(self, encoded: EncodedDocuments, chosen: npt.NDArray[np.bool_]) -> None:
        """Adds the chosen documents (bool [D]) of a chunk, in order."""
        if not chosen.any():
            return
        sentence_chosen = np.repeat(chosen, encoded.document_lengths)
        tokens = encoded.tokens[np.repeat(sentence_chosen, encoded.sentence_lengths)]
        sentence_lengths = encoded.sentence_lengths[sentence_chosen]
        document_lengths = encoded.document_lengths[chosen]
        self.unigram_counts += np.bincount(tokens, minlength=len(self.unigram_counts))
        self.num_documents += len(document_lengths)

        sentence_ends = np.cumsum(document_lengths)
        token_ends = np.cumsum(sentence_lengths)[sentence_ends - 1]
        first = first_sentence = first_token = 0
        while first < len(document_lengths):
            room = self._max_tokens - self._num_tokens
            end = int(np.searchsorted(token_ends, first_token + room, side="right"))
            if end <= first and self._num_tokens > 0:
                self._flush()
                continue
            end = max(end, first + 1)  # a document over the limit has a shard for itself
            end_sentence, end_token = int(sentence_ends[end - 1]), int(token_ends[end - 1])
            self._tokens.append(tokens[first_token:end_token])
            self._sentence_lengths.append(sentence_lengths[first_sentence:end_sentence])
            self._document_lengths.append(document_lengths[first:end])
            self._num_tokens += end_token - first_token
            first, first_sentence, first_token = end, end_sentence, end_token

    def close(self) -> None:
        """Writes the last shard, if it holds anything."""
        if self._num_tokens > 0:
            self._flush()

    def summary(self) -> dict[str, Any]:
        """For the manifest: counts of the split and of each shard."""
        totals = {n: sum(s[n] for s in self._shards) for n in ("documents", "sentences", "tokens")}
        return {**totals, "shards": self._shards}

    def _flush(self) -> None:
        tokens = np.concatenate(self._tokens)
        sentence_offsets = _offsets(self._sentence_lengths)
        document_offsets = _offsets(self._document_lengths)
        arrays = {
            "tokens": tokens,
            "sentence_offsets": sentence_offsets,
            "document_offsets": document_offsets,
            "word_starts": pack_word_starts(self._rule, tokens, sentence_offsets),
        }
        name = f"{self._prefix}_{len(self._shards):05d}.safetensors"
        record = asdict(write_arrays(self._folder / name, arrays))
        counts = {
            "documents": len(document_offsets) - 1,
            "sentences": len(sentence_offsets) - 1,
            "tokens": len(tokens),
        }
        self._shards.append({"file": record.pop("file"), **counts, **record})
        self._clear()

    def _clear(self) -> None:
        self._tokens: list[Array] = []
        self._sentence_lengths: list[Array] = []
        self._document_lengths: list[Array] = []
        self._num_tokens = 0


def _offsets(lengths: list[Array]) -> Array:
    offsets = np.zeros(sum(map(len, lengths)) + 1, np.int64)
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    return offsets
