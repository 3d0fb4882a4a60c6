"""Writing the token shards of one split as they fill, in constant memory.

What belongs to the open shard waits in three files beside it, because a safetensors file begins
with the lengths of its arrays. Shapes: T tokens, S sentences, D documents.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from electra_dist.data.spool import Spool
from electra_dist.data.store import Array, FileRecord
from electra_dist.data.tokenize import EncodedDocuments, WordStartRule, pack_word_starts
from electra_dist.runtime.files import fsync_folder


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
        self._tokens, self._sentence_lengths, self._document_lengths = (
            Spool(folder / f".{prefix}.{name}.spool")
            for name in ("tokens", "sentence_lengths", "document_lengths")
        )

    def add(self, encoded: EncodedDocuments, chosen: npt.NDArray[np.bool_]) -> None:
        """Adds the chosen documents (bool [D]), in order."""
        if not chosen.any():
            return
        tokens, sentence_lengths, document_lengths = encoded.select(chosen)
        self.unigram_counts += np.bincount(tokens, minlength=len(self.unigram_counts))
        self.num_documents += len(document_lengths)

        sentence_ends = np.cumsum(document_lengths, dtype=np.int64)
        token_ends = np.cumsum(sentence_lengths, dtype=np.int64)[sentence_ends - 1]
        first = first_sentence = first_token = 0
        while first < len(document_lengths):
            room = self._max_tokens - self._tokens.num_rows
            end = int(np.searchsorted(token_ends, first_token + room, side="right"))
            if end <= first and self._tokens.num_rows > 0:
                self._flush()
                continue
            end = max(end, first + 1)  # a document over the limit has a shard for itself
            end_sentence, end_token = int(sentence_ends[end - 1]), int(token_ends[end - 1])
            self._tokens.append(tokens[first_token:end_token])
            self._sentence_lengths.append(sentence_lengths[first_sentence:end_sentence])
            self._document_lengths.append(document_lengths[first:end])
            first, first_sentence, first_token = end, end_sentence, end_token

    def close(self) -> None:
        """Writes the last shard, if it holds anything."""
        if self._tokens.num_rows > 0:
            self._flush()
        for spool in (self._tokens, self._sentence_lengths, self._document_lengths):
            spool.close()

    def summary(self) -> dict[str, Any]:
        """For the manifest: counts of the split and of each shard."""
        totals = {n: sum(s[n] for s in self._shards) for n in ("documents", "sentences", "tokens")}
        return {**totals, "shards": self._shards}

    def _flush(self) -> None:
        counts = {
            "documents": self._document_lengths.num_rows,
            "sentences": self._sentence_lengths.num_rows,
            "tokens": self._tokens.num_rows,
        }
        tokens = self._tokens
        # The order in which the safetensors library itself lays arrays out: wide types first.
        arrays = {
            "document_offsets": (np.int64, counts["documents"] + 1, self._document_offsets),
            "sentence_offsets": (np.int64, counts["sentences"] + 1, self._sentence_offsets),
            "tokens": (tokens.dtype, counts["tokens"], tokens.blocks),
            "word_starts": (np.uint8, (counts["tokens"] + 7) // 8, self._word_starts),
        }
        name = f"{self._prefix}_{len(self._shards):05d}.safetensors"
        record = asdict(_write_blocks(self._folder / name, arrays))
        self._shards.append({"file": record.pop("file"), **counts, **record})
        for spool in (self._tokens, self._sentence_lengths, self._document_lengths):
            spool.clear()

    def _document_offsets(self) -> Iterator[Array]:
        return _offsets(self._document_lengths.blocks())

    def _sentence_offsets(self) -> Iterator[Array]:
        return _offsets(self._sentence_lengths.blocks())

    def _word_starts(self) -> Iterator[Array]:
        """uint8 blocks: each is worked out with 8 tokens of the one before, for their last."""
        sentence_starts = _Window(self._sentence_offsets())
        before: Array = np.zeros(0, np.int64)
        end = 0
        for block in self._tokens.blocks():
            start, end = end - len(before), end + len(block)
            tokens = np.concatenate([before, block])
            starts = sentence_starts.between(start, end) - start
            packed = pack_word_starts(self._rule, tokens, np.append(starts, len(tokens)))
            yield packed[len(before) // 8 :]
            before = block[-8:]


class _Window:
    """Rising numbers that come in blocks, asked for in rising ranges that overlap a little."""

    def __init__(self, blocks: Iterator[Array]) -> None:
        self._blocks = blocks
        self._held: Array = np.zeros(0, np.int64)

    def between(self, start: int, end: int) -> Array:
        """Those from `start` to below `end`."""
        while len(self._held) == 0 or self._held[-1] < end:
            block = next(self._blocks, None)
            if block is None:
                break
            self._held = np.concatenate([self._held, block])
        first, last = np.searchsorted(self._held, [start, end])
        self._held = self._held[first:]
        return self._held[: last - first]


def _offsets(lengths: Iterator[Array]) -> Iterator[Array]:
    """int64 blocks: 0, then the running sum."""
    end = np.zeros(1, np.int64)
    yield end
    for block in lengths:
        offsets = np.cumsum(block, dtype=np.int64) + end[-1]
        yield offsets
        end = offsets


_Blocks = Callable[[], Iterator[Array]]
_DTYPE_NAMES = {"uint8": "U8", "uint16": "U16", "uint32": "U32", "int64": "I64"}


def _write_blocks(path: Path, arrays: dict[str, tuple[npt.DTypeLike, int, _Blocks]]) -> FileRecord:
    """Writes a safetensors file from name -> (type, length, blocks); the bytes of `save` itself."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, length, _) in arrays.items():
        start, end = end, end + length * np.dtype(dtype).itemsize
        kind = _DTYPE_NAMES[np.dtype(dtype).name]
        header[name] = {"dtype": kind, "shape": [length], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_128()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for data in (len(text).to_bytes(8, "little"), text):
                file.write(data)
                digest.update(data)
            for _, _, blocks in arrays.values():
                for block in blocks():
                    file.write(block.data)
                    digest.update(block.data)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        assert size == 8 + len(text) + end
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)
    return FileRecord(file=path.name, bytes=size, xxh3_128=digest.hexdigest())
