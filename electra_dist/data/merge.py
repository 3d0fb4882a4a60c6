"""From parts to a corpus: one pass over the parts in order, in this process.

It decides duplicates and which documents are held out or repeated, and writes shards, quarantine
and manifest. A pass that was killed is made again. F files of a source, D documents.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from electra_dist.data import dedup
from electra_dist.data.build_options import BuildOptions, SourceSpec
from electra_dist.data.near_duplicates import NearDuplicateIndex
from electra_dist.data.parts import Part, SourceInput, read_part
from electra_dist.data.quarantine import Quarantine
from electra_dist.data.shards import ShardWriter
from electra_dist.data.spool import Spool
from electra_dist.data.store import Array
from electra_dist.data.tokenize import is_held_out

KEPT, DUPLICATE, NEAR_DUPLICATE = range(3)
DOCUMENT_COUNTS = ("documents", "duplicates", "near_duplicates", "left_out_by_weight")
_COUNTS = (*DOCUMENT_COUNTS, "empty_documents", "records", "bad_records")


@dataclass(kw_only=True)
class SourceCounts:
    """What was found in a source, file by file."""

    by_file: dict[str, Array]
    """int64 [F] for each of `_COUNTS`."""
    cleaning: dict[str, Counter[str]]
    """For each --input word what cleaning changed."""

    @classmethod
    def of(cls, source: SourceInput) -> "SourceCounts":
        """All zero."""
        return cls(
            by_file={name: np.zeros(len(source.files), np.int64) for name in _COUNTS},
            cleaning={file.given: Counter() for file in source.files},
        )


@dataclass(kw_only=True)
class Survey:
    """What reading the facts of all parts gives."""

    part_sources: list[int] = field(default_factory=list)
    """For each part its source."""
    part_documents: list[int] = field(default_factory=list)
    """For each part how many documents it holds."""
    counts: list[SourceCounts]
    """For each source."""
    fates: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    """uint8 [documents of all parts]: KEPT, DUPLICATE or NEAR_DUPLICATE."""

    def total(self, name: str) -> int:
        """A count over all sources."""
        return sum(int(counts.by_file[name].sum()) for counts in self.counts)


def survey(
    options: BuildOptions,
    inputs: Sequence[SourceInput],
    parts: Path,
    num_parts: int,
    quarantine: Quarantine,
) -> Survey:
    """Lists bad records, counts, and finds duplicates (raises UserError: too many bad records)."""
    result = Survey(counts=[SourceCounts.of(source) for source in inputs])
    hashes = Spool(parts / ".text_hashes.spool")
    near = None
    if options.dedup == "near":
        near = NearDuplicateIndex(parts, options.near_threshold)
    for number in range(num_parts):
        part = read_part(parts, number)
        _count(part, inputs[part.source], result.counts[part.source], quarantine)
        result.part_sources.append(part.source)
        result.part_documents.append(len(part.encoded.document_lengths))
        hashes.append(part.encoded.text_hashes)
        if near is not None and part.signatures is not None:
            near.add(part.signatures)
    quarantine.check_share(options.max_quarantine_share)
    result.fates = np.zeros(hashes.num_rows, np.uint8)
    if options.dedup != "none":
        is_repeat = dedup.repeats(hashes.blocks, hashes.num_rows)
        result.fates[is_repeat] = DUPLICATE
        if near is not None:
            result.fates[near.find(is_repeat)] = NEAR_DUPLICATE
    return result


def write_shards(
    options: BuildOptions,
    parts: Path,
    surveyed: Survey,
    writers: dict[str, ShardWriter],
    report: Callable[[int], None],
) -> None:
    """Writes all documents that stay, each source as often as its weight says.

    `report` is told the bytes of input that each part stood for.
    """
    ends = np.cumsum([0, *surveyed.part_documents])
    for source, spec in enumerate(options.sources):
        numbers = [n for n, of in enumerate(surveyed.part_sources) if of == source]
        for copy in range(int(np.ceil(spec.weight))):
            for number in numbers:
                part = read_part(parts, number)
                fates = surveyed.fates[ends[number] : ends[number + 1]]
                held_out = is_held_out(part.encoded.text_hashes, options.held_out_share)
                copies = np.where(held_out, 1, num_copies(part.encoded.text_hashes, spec.weight))
                if copy == 0:
                    _count_documents(part, fates, copies, surveyed.counts[source])
                chosen = (fates == KEPT) & (copies > copy)
                writers["train"].add(part.encoded, chosen & ~held_out)
                writers["held_out"].add(part.encoded, chosen & held_out)
                if copy == 0:
                    report(sum(piece.num_bytes for piece in part.pieces))
    for writer in writers.values():
        writer.close()


def num_copies(text_hashes: Array, weight: float) -> Array:
    """int64 [D]: how often each document stands in the corpus, on average `weight` times."""
    whole = int(weight)
    # The low half of the hash: the high one decides what is held out.
    return whole + (text_hashes[:, 1] < np.uint64((weight - whole) * 2**64)).astype(np.int64)


def provenance(
    options: BuildOptions, inputs: Sequence[SourceInput], counts: Sequence[SourceCounts]
) -> list[dict[str, Any]]:
    """For the manifest: an entry for each --input word of each source."""
    entries = []
    for spec, source, found in zip(options.sources, inputs, counts, strict=True):
        for given in dict.fromkeys(spec.inputs):
            numbers = [i for i, file in enumerate(source.files) if file.given == given]
            entries.append(_entry(spec, given, source, found, numbers))
    return entries


def _entry(
    spec: SourceSpec, given: str, source: SourceInput, counts: SourceCounts, numbers: list[int]
) -> dict[str, Any]:
    return {
        "kind": spec.kind,
        "path": given,
        "license": spec.license,
        "weight": spec.weight,
        "options": asdict(spec.options),
        **{name: int(counts.by_file[name][numbers].sum()) for name in _COUNTS},
        "cleaning": dict(sorted(counts.cleaning[given].items())),
        "files": [
            {
                "name": source.files[i].name,
                "bytes": source.files[i].num_bytes,
                "documents": int(counts.by_file["documents"][i]),
            }
            for i in numbers
        ],
    }


def _count(part: Part, source: SourceInput, counts: SourceCounts, quarantine: Quarantine) -> None:
    for piece in part.pieces:
        quarantine.num_records += piece.num_records
        for record in piece.bad_records:
            quarantine.add(source.files[piece.file_index].name, record)
        counts.by_file["empty_documents"][piece.file_index] += piece.num_empty
        counts.by_file["records"][piece.file_index] += piece.num_records
        bad = sum(not record.kept for record in piece.bad_records)
        counts.by_file["bad_records"][piece.file_index] += bad
        counts.cleaning[source.files[piece.file_index].given].update(piece.cleaning)


def _count_documents(
    part: Part, fates: npt.NDArray[np.uint8], copies: Array, counts: SourceCounts
) -> None:
    files = np.repeat(
        [piece.file_index for piece in part.pieces], [piece.num_documents for piece in part.pieces]
    )
    kept = fates == KEPT
    for name, chosen in zip(
        DOCUMENT_COUNTS,
        (kept & (copies > 0), fates == DUPLICATE, fates == NEAR_DUPLICATE, kept & (copies == 0)),
        strict=True,
    ):
        numbers = counts.by_file[name]
        numbers += np.bincount(files[chosen], minlength=len(numbers))


def manifest_counts(
    options: BuildOptions, inputs: Sequence[SourceInput], surveyed: Survey
) -> dict[str, Any]:
    """For the manifest: duplicates, cleaning and sources."""
    cleaning: Counter[str] = Counter()
    for counts in surveyed.counts:
        for of_word in counts.cleaning.values():
            cleaning.update(of_word)
    return {
        "held_out_share": options.held_out_share,
        "dedup": options.dedup,
        "near_threshold": options.near_threshold if options.dedup == "near" else None,
        "duplicates": surveyed.total("duplicates"),
        "near_duplicates": surveyed.total("near_duplicates"),
        "empty_documents": surveyed.total("empty_documents"),
        "left_out_by_weight": surveyed.total("left_out_by_weight"),
        "cleaning": dict(sorted(cleaning.items())),
        "sources": provenance(options, inputs, surveyed.counts),
    }
