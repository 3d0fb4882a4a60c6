"""An even sample of the input, for training or measuring a vocabulary.

The sample is a number of windows of about 1 MiB, at even distances over all that is given: the same
ones each time, and the work is bounded by the sample, however large the input. What cannot be
entered in the middle (compressed files, Parquet, datasets) is read from its beginning; of many such
files each gives its share.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from electra_dist.data import records, sources
from electra_dist.data.input_files import InputFile, open_file
from electra_dist.data.parts import SourceInput, total_bytes
from electra_dist.data.sources import Document, Piece

Report = Callable[[int], None]
"""Told the bytes of text taken so far."""

_LINE_SOURCES = ("text", "jsonl")


def sample_sentences(
    inputs: Sequence[SourceInput], max_bytes: int, report: Report = lambda _: None
) -> Iterator[str]:
    """The sentences of `sample_documents`."""
    for document in sample_documents(inputs, max_bytes, report):
        yield from document.sentences


def sample_documents(
    inputs: Sequence[SourceInput], max_bytes: int, report: Report = lambda _: None
) -> Iterator[Document]:
    """Documents of `max_bytes` of text, about, spread over the input; all of a smaller one.

    In a file that is entered in the middle, documents that a window cuts are left out, unless they
    are longer than a window. Bad records are left out. Where sizes are unknown, each file gives as
    much as the next.
    """
    sizes_known = total_bytes(inputs) is not None
    weights = [
        (file.num_bytes or 0) if sizes_known else 1 for source in inputs for file in source.files
    ]
    total = max(sum(weights), 1)
    before = taken = number = 0
    for source in inputs:
        for index, file in enumerate(source.files):
            after = before + weights[number]
            num_windows = _windows(after, total, max_bytes) - _windows(before, total, max_bytes)
            before, number = after, number + 1
            for piece in _pieces(source, file, index, num_windows):
                taken += len(piece.payload)
                report(taken)
                yield from sources.parse(source.kind, piece, source.options).documents


def _windows(place: int, total: int, max_bytes: int) -> int:
    """Windows that begin before a place in the input."""
    return math.ceil(place * max_bytes / (total * records.PIECE_BYTES))


def _pieces(
    source: SourceInput, file: InputFile, file_index: int, num_windows: int
) -> Iterator[Piece]:
    if not num_windows:
        return
    limit = num_windows * records.PIECE_BYTES
    size = file.num_bytes or 0
    if source.kind in _LINE_SOURCES and size > limit:
        with open_file(file) as opened:
            if opened.stream is opened.raw:
                for window in range(num_windows):
                    start = size * window // num_windows
                    opened.stream.seek(start)
                    data = opened.stream.read(records.PIECE_BYTES)
                    yield _piece(source, file_index, start, data)
                return
    taken = 0
    for piece in sources.pieces(source.kind, file, file_index, source.options):
        yield piece
        taken += len(piece.payload)
        if taken >= limit:
            return


def _piece(source: SourceInput, file_index: int, offset: int, data: bytes) -> Piece:
    """The whole documents of a window; of a longer document its whole lines, or words."""
    marks = (b"\n",) if source.kind == "jsonl" else (b"\n\n", b"\n", b" ")
    payload = b""
    for mark in marks:
        first = data.find(mark) + len(mark) if offset else 0
        last = data.rfind(mark) + len(mark)
        if mark in data and first < last:
            payload = data[first:last]
            break
    return Piece(
        file_index=file_index,
        offset=offset,
        payload=payload,
        num_bytes=len(data),
    )
