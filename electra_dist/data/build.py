"""Building a corpus: documents to token shards, in CORPUS.building, renamed at the end.

    read (this process) -> chunks of documents -> encode (worker processes, results in order) ->
    ShardWriter per split

The bytes written depend on the input and the options only, never on the number of workers, the time
or the machine. Memory holds one shard a split and a few chunks, whatever the size of the input.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from electra_dist.data import sources, store
from electra_dist.data.quarantine import Quarantine
from electra_dist.data.shards import ShardWriter
from electra_dist.data.tokenize import (
    TokenizerFacts,
    describe,
    load_tokenizer,
    tokenizer_sha256,
    word_start_rule,
)
from electra_dist.data.vocab import read_sentences, train_wordpiece
from electra_dist.data.workers import Chunk, encode_chunks
from electra_dist.errors import UserError

# A chunk is what one worker encodes at a time: about half a second of work.
_CHUNK_CHARACTERS = 1 << 20
_CHUNK_DOCUMENTS = 4096


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What `corpus build` may be told. Checked at construction (UserError)."""

    inputs: tuple[str, ...]
    """Files, folders and globs; order counts."""
    out: Path
    """The corpus folder to make; must not exist."""
    source: str = "text"
    """A name in `SOURCES`."""
    tokenizer: str = "train"
    """A tokenizer.json, a WordPiece vocab.txt, or `train`: train a WordPiece on the input."""
    vocab_size: int = 8192
    """Entries at most, for `tokenizer = train`."""
    lowercase: bool = True
    """For `train` and a vocab.txt."""
    strip_accents: bool | None = None
    """For `train` and a vocab.txt; None follows lowercase."""
    text_field: str = "text"
    """jsonl: the field that holds the text."""
    held_out_share: float = 0.005
    """Share of the documents, chosen by hash, that is never trained on."""
    max_quarantine_share: float = 0.01
    """More bad records than this share of all records fail the build."""
    num_workers: int = 1
    """Encoding processes; 1 encodes in this one."""
    shard_tokens: int = 64 << 20
    """Tokens a shard at most (a longer document has a shard for itself)."""
    max_document_bytes: int = 64 << 20
    """A longer document is quarantined."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        sources.source_named(self.source)
        for name in ("held_out_share", "max_quarantine_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"{name} {getattr(self, name)} is out of range: use 0 or more and less than 1"
                )
        for name in ("num_workers", "shard_tokens", "max_document_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is out of range: use 1 or more")

    @property
    def source_options(self) -> sources.SourceOptions:
        """The part that a source is given."""
        return sources.SourceOptions(
            text_field=self.text_field, max_document_bytes=self.max_document_bytes
        )


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build made. Documents, sentences and tokens count the train split."""

    folder: Path
    fingerprint: str
    vocab_size: int
    documents: int
    sentences: int
    tokens: int
    held_out_documents: int
    held_out_tokens: int
    empty_documents: int
    """Documents without a token, skipped."""
    quarantined: int
    """Bad records, listed in quarantine.jsonl."""


Report = Callable[[int, int], None]
"""Called with the documents and tokens stored so far."""


def build_corpus(options: BuildOptions, report: Report | None = None) -> BuildSummary:
    """Builds the corpus `options.out`.

    With num_workers > 1 the calling script needs the `if __name__ == "__main__"` guard (workers are
    spawned). Raises UserError when the folder exists, an input or tokenizer is missing or wrong, no
    document is left, or the share of bad records is over the limit;
    CORPUS.building/quarantine.jsonl is then left for reading.
    """
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"{options.out} exists already: remove it or choose another --out")
    files = sources.find_files(options.inputs)
    building = options.out.with_name(options.out.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)

    facts = _write_tokenizer(options, files, building / "tokenizer.json")
    result = _encode_files(options, files, building, facts, report)
    manifest = _manifest(options, files, building, facts, result)
    store.write_json(building / "manifest.json", manifest)
    store.commit_folder(building, options.out)
    train, held_out = manifest["splits"]["train"], manifest["splits"]["held_out"]
    return BuildSummary(
        folder=options.out,
        fingerprint=manifest["fingerprint"],
        vocab_size=facts.vocab_size,
        documents=train["documents"],
        sentences=train["sentences"],
        tokens=train["tokens"],
        held_out_documents=held_out["documents"],
        held_out_tokens=held_out["tokens"],
        empty_documents=manifest["empty_documents"],
        quarantined=manifest["quarantine"]["records"],
    )


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """What a pass over the input left: closed writers and counts."""

    writers: dict[str, ShardWriter]
    quarantine: Quarantine
    file_documents: np.ndarray[Any, np.dtype[np.int64]]
    empty_documents: int


def _write_tokenizer(
    options: BuildOptions, files: list[sources.InputFile], path: Path
) -> TokenizerFacts:
    if options.tokenizer == "train":
        tokenizer = train_wordpiece(
            lambda: read_sentences(options.source, files, options.source_options),
            options.vocab_size,
            options.lowercase,
            options.strip_accents,
        )
    else:
        tokenizer = load_tokenizer(options.tokenizer, options.lowercase, options.strip_accents)
    store.write_bytes(path, tokenizer.to_str(pretty=True).encode())
    return describe(tokenizer)


def _encode_files(
    options: BuildOptions,
    files: list[sources.InputFile],
    building: Path,
    facts: TokenizerFacts,
    report: Report | None,
) -> _Encoded:
    rule = word_start_rule(load_tokenizer(building / "tokenizer.json"))
    writers = {
        split: ShardWriter(building, prefix, facts.vocab_size, rule, options.shard_tokens)
        for split, prefix in store.TOKEN_FILE_PREFIX.items()
    }
    file_documents = np.zeros(len(files), np.int64)
    num_documents = num_tokens = num_empty = 0
    with Quarantine(building / "quarantine.jsonl") as quarantine:
        chunks = _chunks(options, files, quarantine)
        encoded_chunks = encode_chunks(
            chunks, building / "tokenizer.json", options.held_out_share, options.num_workers
        )
        for chunk, encoded in encoded_chunks:
            writers["train"].add(encoded, ~encoded.held_out)
            writers["held_out"].add(encoded, encoded.held_out)
            file_documents += np.bincount(
                np.asarray(chunk.file_index)[encoded.input_index], minlength=len(files)
            )
            num_empty += len(chunk.documents) - len(encoded.input_index)
            num_documents += len(encoded.document_lengths)
            num_tokens += len(encoded.tokens)
            if report is not None:
                report(num_documents, num_tokens)
    for writer in writers.values():
        writer.close()
    quarantine.check_share(options.max_quarantine_share)
    if writers["train"].num_documents == 0:
        raise UserError(
            f"--input {' '.join(options.inputs)} holds no document to train on"
            f" ({num_documents} held out, {num_empty} empty, {quarantine.num_bad} bad records):"
            " give files with text"
        )
    return _Encoded(
        writers=writers,
        quarantine=quarantine,
        file_documents=file_documents,
        empty_documents=num_empty,
    )


def _chunks(
    options: BuildOptions, files: list[sources.InputFile], quarantine: Quarantine
) -> Iterator[Chunk]:
    read = sources.source_named(options.source)
    documents: list[tuple[str, ...]] = []
    file_index: list[int] = []
    num_characters = 0
    for index, file in enumerate(files):
        for item in read(file.path, options.source_options):
            if isinstance(item, sources.BadRecord):
                quarantine.add(file.name, item)
                continue
            quarantine.num_records += item.num_records
            documents.append(item.sentences)
            file_index.append(index)
            num_characters += sum(map(len, item.sentences))
            if num_characters >= _CHUNK_CHARACTERS or len(documents) >= _CHUNK_DOCUMENTS:
                yield Chunk(documents=documents, file_index=file_index)
                documents, file_index, num_characters = [], [], 0
    if documents:
        yield Chunk(documents=documents, file_index=file_index)


def _manifest(
    options: BuildOptions,
    files: list[sources.InputFile],
    building: Path,
    facts: TokenizerFacts,
    result: _Encoded,
) -> dict[str, Any]:
    sha256 = tokenizer_sha256(building / "tokenizer.json")
    unigram = store.write_arrays(
        building / "unigram.safetensors", {"counts": result.writers["train"].unigram_counts}
    )
    splits = {split: writer.summary() for split, writer in result.writers.items()}
    dtype = np.dtype(facts.dtype).name
    hashes = sorted(
        f"{s['file']} {s['xxh3_128']}" for part in splits.values() for s in part["shards"]
    )
    provenance = []
    for given in dict.fromkeys(options.inputs):
        entries = [
            {"name": f.name, "bytes": f.path.stat().st_size, "documents": int(count)}
            for f, count in zip(files, result.file_documents, strict=True)
            if f.given == given
        ]
        provenance.append({"kind": options.source, "path": given, "files": entries})
    return {
        "format_version": store.FORMAT_VERSION,
        "fingerprint": store.fingerprint_of([*hashes, sha256, dtype]),
        "tokenizer": {
            "file": "tokenizer.json",
            "sha256": sha256,
            "lowercase": facts.lowercase,
            "strip_accents": facts.strip_accents,
            "kind": facts.kind,
        },
        "vocab_size": facts.vocab_size,
        "dtype": dtype,
        "special_ids": asdict(facts.special_ids),
        "held_out_share": options.held_out_share,
        "splits": splits,
        "sources": provenance,
        "empty_documents": result.empty_documents,
        "quarantine": result.quarantine.summary(),
        "unigram": asdict(unigram),
    }
