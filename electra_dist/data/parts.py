"""Parts: what a build keeps of each few pieces of input, so that it can go on after a kill.

A part is a pure function of its pieces and the tokenizer. It is written by the worker that encoded
it, appears by a rename, and is all that a killed build leaves behind. Shapes: D documents that hold
a token, S sentences, T tokens, P pieces.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from electra_dist.data import near_duplicates, sources, store
from electra_dist.data.store import Array
from electra_dist.data.tokenize import (
    EncodedDocuments,
    describe,
    encode_documents,
    load_tokenizer,
)

PART_BYTES = 4 << 20
"""Text in a part, about: some seconds of a worker, 250,000 files for a terabyte."""
_FIRST_PART_BYTES = 256 << 10
# Parts grow with what came before and shrink with what is left, where that is known: the last ones
# must leave no core idle for long.
_PARTS_TO_EACH_SIDE = 32


@dataclass(frozen=True, kw_only=True)
class SourceInput:
    """What `corpus build` reads for one source: its kind, its files and what it was told."""

    kind: str
    options: sources.SourceOptions
    files: Sequence[sources.InputFile]


@dataclass(frozen=True, kw_only=True)
class PartTask:
    """The pieces of a part, on their way to a worker. All of one source."""

    number: int
    source: int
    pieces: tuple[sources.Piece, ...]

    @property
    def num_bytes(self) -> int:
        """Input that the part stands for, as stored."""
        return sum(piece.num_bytes for piece in self.pieces)


@dataclass(frozen=True, kw_only=True)
class PieceFacts:
    """What a part says of one of its pieces, beside the documents."""

    file_index: int
    num_bytes: int
    num_documents: int
    """Documents that hold a token."""
    num_empty: int
    """Documents without one."""
    num_records: int
    """Records, good and bad."""
    bad_records: list[sources.BadRecord]
    cleaning: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part, opened. Arrays are read-only memory maps."""

    source: int
    pieces: list[PieceFacts]
    encoded: EncodedDocuments
    signatures: Array | None
    """uint32 [D, NUM_HASHES]: MinHash signatures, where near duplicates are looked for."""


@dataclass(frozen=True, kw_only=True)
class EncoderSetup:
    """What an `Encoder` is made from. Picklable."""

    folder: Path
    """Where parts are written."""
    tokenizer: Path
    """A tokenizer.json."""
    inputs: tuple[tuple[str, sources.SourceOptions], ...]
    """Kind and options of each source."""
    signatures: bool
    """Whether near duplicates are looked for."""


class Encoder:
    """What turns pieces into a part: one in each worker."""

    def __init__(self, setup: EncoderSetup) -> None:
        self._setup = setup
        self._tokenizer = load_tokenizer(setup.tokenizer)
        self._facts = describe(self._tokenizer)

    def write(self, task: PartTask) -> tuple[int, int]:
        """Parses and encodes the pieces and writes the part; returns its documents and tokens."""
        arrays: dict[str, list[Array]] = {field.name: [] for field in fields(EncodedDocuments)}
        arrays |= {"signatures": []} if self._setup.signatures else {}
        facts: list[PieceFacts] = []
        for piece in task.pieces:
            encoded, of_piece = self._encode(task.source, piece)
            facts.append(of_piece)
            for name, values in arrays.items():
                values.append(
                    near_duplicates.signatures(encoded)
                    if name == "signatures"
                    else getattr(encoded, name)
                )
        joined = {name: np.concatenate(values) for name, values in arrays.items()}
        words = {"source": task.source, "pieces": [asdict(piece) for piece in facts]}
        joined["facts"] = np.frombuffer(json.dumps(words).encode(), np.uint8)
        store.write_arrays(part_path(self._setup.folder, task.number), joined)
        return len(joined["document_lengths"]), len(joined["tokens"])

    def _encode(self, source: int, piece: sources.Piece) -> tuple[EncodedDocuments, PieceFacts]:
        kind, options = self._setup.inputs[source]
        parsed = sources.parse(kind, piece, options)
        documents = [document.sentences for document in parsed.documents]
        encoded = encode_documents(self._tokenizer, self._facts, documents)
        num_documents = len(encoded.document_lengths)
        return encoded, PieceFacts(
            file_index=piece.file_index,
            num_bytes=piece.num_bytes,
            num_documents=num_documents,
            num_empty=len(documents) - num_documents,
            num_records=parsed.num_records,
            bad_records=parsed.bad_records,
            cleaning=dict(sorted(parsed.cleaning.items())),
        )


def part_path(folder: Path, number: int) -> Path:
    """Where part `number` lies or will lie."""
    return folder / f"part_{number:06d}.safetensors"


def read_part(folder: Path, number: int) -> Part:
    """Opens a part (UserError where it is damaged)."""
    arrays = store.read_arrays(part_path(folder, number))
    words = json.loads(arrays.pop("facts").tobytes())
    signatures = arrays.pop("signatures", None)
    return Part(
        source=words["source"],
        pieces=[_piece_facts(piece) for piece in words["pieces"]],
        encoded=EncodedDocuments(**arrays),
        signatures=signatures,
    )


def total_bytes(inputs: Sequence[SourceInput]) -> int | None:
    """Bytes of all files as they are stored; None where a store does not say."""
    sizes = [file.num_bytes for source in inputs for file in source.files]
    return None if None in sizes else sum(size or 0 for size in sizes)


def part_tasks(inputs: Sequence[SourceInput]) -> Iterator[PartTask]:
    """Cuts the input into the pieces of parts; the same ones whatever happens elsewhere."""
    total = total_bytes(inputs)
    number = stored = text = 0
    for index, source in enumerate(inputs):
        waiting: list[sources.Piece] = []
        size = 0
        for piece in _pieces(source):
            waiting.append(piece)
            size += len(piece.payload)
            stored += piece.num_bytes
            if size < _part_bytes(text, stored, total):
                continue
            yield PartTask(number=number, source=index, pieces=tuple(waiting))
            number, text = number + 1, text + size
            waiting, size = [], 0
        if waiting:
            yield PartTask(number=number, source=index, pieces=tuple(waiting))
            number, text = number + 1, text + size


def _part_bytes(text: int, stored: int, total: int | None) -> int:
    """What the next part holds after `text` bytes, which are `stored` of `total` in the files."""
    left = text if total is None else text * max(total - stored, 0) // max(stored, 1)
    return min(max(min(text, left) // _PARTS_TO_EACH_SIDE, _FIRST_PART_BYTES), PART_BYTES)


def _pieces(source: SourceInput) -> Iterable[sources.Piece]:
    return chain.from_iterable(
        sources.pieces(source.kind, file, index, source.options)
        for index, file in enumerate(source.files)
    )


def _piece_facts(words: dict[str, Any]) -> PieceFacts:
    bad_records = [sources.BadRecord(**record) for record in words.pop("bad_records")]
    return PieceFacts(bad_records=bad_records, **words)
