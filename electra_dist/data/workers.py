"""Encoding chunks of documents in worker processes, results in the order of the input."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from electra_dist.data.tokenize import (
    EncodedDocuments,
    TokenizerFacts,
    describe,
    encode_documents,
    load_tokenizer,
)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive documents of the input, some of them perhaps empty."""

    documents: list[tuple[str, ...]]
    file_index: list[int]
    """For each document the input file that it came from."""


def encode_chunks(
    chunks: Iterable[Chunk], tokenizer_path: Path, held_out_share: float, num_workers: int
) -> Iterator[tuple[Chunk, EncodedDocuments]]:
    """Yields each chunk with its encoding, in order; holds at most `2 num_workers + 1` chunks."""
    if num_workers == 1:
        tokenizer = load_tokenizer(tokenizer_path)
        facts = describe(tokenizer)
        for chunk in chunks:
            yield chunk, encode_documents(tokenizer, facts, chunk.documents, held_out_share)
        return
    executor = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer_path, held_out_share),
    )
    with executor:
        try:
            waiting: deque[tuple[Chunk, Future[EncodedDocuments]]] = deque()
            for chunk in chunks:
                waiting.append((chunk, executor.submit(_encode, chunk.documents)))
                if len(waiting) > 2 * num_workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise


_worker: tuple[Tokenizer, TokenizerFacts, float]


def _start_worker(tokenizer_path: Path, held_out_share: float) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else every worker starts a thread a core
    tokenizer = load_tokenizer(tokenizer_path)
    _worker = (tokenizer, describe(tokenizer), held_out_share)


def _encode(documents: list[tuple[str, ...]]) -> EncodedDocuments:
    tokenizer, facts, held_out_share = _worker
    return encode_documents(tokenizer, facts, documents, held_out_share)
