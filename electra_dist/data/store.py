"""The token store: what lies on disk under CORPUS, and how it is written and opened.

CORPUS/
  manifest.json                  counts, hashes, tokenizer, provenance; `fingerprint` names the rest
  tokenizer.json                 Hugging Face tokenizers file
  tokens_00000.safetensors       the train split; held_out_00000.safetensors ... the held-out split
  unigram.safetensors            counts int64 [vocab_size] over the train split
  quarantine.jsonl               one bad record a line
  pack_<length>_<mode>/          examples over the token shards (packing.py)

Everything is JSON or safetensors, read through memory maps: opening a corpus costs no memory,
whatever its size. Files and folders appear by renaming only, so a reader never sees half of one.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy
import xxhash

from electra_dist.data.arrays import Array as Array
from electra_dist.data.arrays import read_arrays as read_arrays
from electra_dist.data.remote import Cache, RemoteFolder, is_address
from electra_dist.errors import UserError
from electra_dist.runtime.files import fsync_folder, write_bytes_atomic

FORMAT_VERSION = 1
SPLITS = ("train", "held_out")
TOKEN_FILE_PREFIX = {"train": "tokens", "held_out": "held_out"}
EXAMPLE_FILE_PREFIX = {"train": "examples", "held_out": "held_out_examples"}
PACKING_MODES = ("full", "google", "packed")

_CORPUS_FIELDS = (
    *("fingerprint", "tokenizer", "vocab_size", "dtype", "special_ids", "splits", "unigram"),
    *("sources", "empty_documents", "quarantine"),
)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a manifest says of one file."""

    file: str
    bytes: int
    xxh3_128: str


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Ids of [PAD], [UNK], [CLS], [SEP] and [MASK] in the corpus's vocabulary."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


@dataclass(frozen=True, kw_only=True)
class TokenShard:
    """One token file as read-only memory maps. T tokens, S sentences, D documents."""

    tokens: Array
    """uint16 or uint32 [T], without special tokens."""
    sentence_offsets: Array
    """int64 [S + 1] into tokens."""
    document_offsets: Array
    """int64 [D + 1] into sentences."""
    word_starts: Array
    """uint8 [ceil(T / 8)]: bit i, little order, is 1 where token i starts a word."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Examples over a token shard: A is the length_a tokens from start, B the length_b after."""

    start: Array
    """int64 [E]."""
    length_a: Array
    """uint16 [E], at least 1."""
    length_b: Array
    """uint16 [E], 0 for a single segment."""


@dataclass(frozen=True, kw_only=True)
class PackedExamples:
    """Rows of mode `packed` over a token shard. A row is the tokens from its start to the next's.

    They are cut into blocks, each a document or a part of one; E rows, K blocks.
    """

    start: Array
    """int64 [E]."""
    block_offsets: Array
    """int64 [E + 1] into block_lengths: the blocks of row e are block_offsets[e : e + 2]."""
    block_lengths: Array
    """uint16 [K], tokens of a block without its [CLS] and [SEP], at least 1."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus on disk, opened for reading."""

    folder: Path
    """Of a corpus at an address: where its files lie in the cache, once they are fetched."""
    manifest: dict[str, Any]
    remote: RemoteFolder | None = None

    @classmethod
    def open(cls, folder: str | Path, cache: Cache | None = None) -> "Corpus":
        """Reads the manifest and checks that every file is there in its full size.

        Args:
            folder: a path or an fsspec address, whose files are fetched when they are first read.
            cache: where those of an address are kept.

        Raises UserError when this is no corpus, was written by a newer version, or a file is
        missing or cut short.
        """
        remote = RemoteFolder.at(str(folder), cache or Cache.at()) if is_address(folder) else None
        where = remote or Path(folder)
        manifest = read_manifest(where, "corpus", "build one with `electra-dist corpus build`")
        lacking = [name for name in _CORPUS_FIELDS if name not in manifest]
        if lacking:
            raise UserError(f"{where}/manifest.json lacks {lacking[0]!r}: copy the folder again")
        if remote is not None:
            return cls(folder=remote.local, manifest=manifest, remote=remote)
        check_sizes(Path(folder), [*token_file_records(manifest), manifest["unigram"]])
        return cls(folder=Path(folder), manifest=manifest)

    @property
    def fingerprint(self) -> str:
        """Names the content: token files, tokenizer and dtype."""
        return str(self.manifest["fingerprint"])

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return int(self.manifest["vocab_size"])

    @property
    def special_ids(self) -> SpecialIds:
        """Ids of the five special tokens."""
        return SpecialIds(**self.manifest["special_ids"])

    @property
    def tokenizer_path(self) -> Path:
        """The corpus's tokenizer.json."""
        entry = self.manifest["tokenizer"]
        return self.folder / str(entry["file"]) if not self.remote else self.remote.fetch(entry)

    def shards(self, split: str) -> list[TokenShard]:
        """The token shards of "train" or "held_out"."""
        return [self.shard(split, index) for index in range(len(self.records(split)))]

    def records(self, split: str) -> list[dict[str, Any]]:
        """The manifest's entries of the token files of a split."""
        return list(self.manifest["splits"][split]["shards"])

    def shard(self, split: str, index: int) -> TokenShard:
        """One of them; at an address it is fetched now."""
        return TokenShard(**_arrays_of(self.folder, self.remote, self.records(split)[index]))

    def token_shards(self, split: str) -> list[Array]:
        """Only the tokens of each shard: uint16 or uint32 [T], memory-mapped."""
        return [shard.tokens for shard in self.shards(split)]

    def unigram_counts(self) -> Array:
        """int64 [vocab_size]: how often each id stands in the train split."""
        return _arrays_of(self.folder, self.remote, self.manifest["unigram"])["counts"]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The examples of one sequence length over a corpus, opened for reading."""

    folder: Path
    manifest: dict[str, Any]
    remote: RemoteFolder | None = None

    @classmethod
    def open(cls, corpus: Corpus, length: int, mode: str = "full") -> "Packing":
        """Opens `pack_<length>_<mode>` (UserError: missing, damaged or made over other tokens)."""
        folder = packing_folder(corpus.folder, length, mode)
        remote = corpus.remote / folder.name if corpus.remote else None
        place = corpus.remote or corpus.folder
        remedy = f"run `electra-dist corpus pack {place} --length {length} --mode {mode}`"
        manifest = read_manifest(remote or folder, "packing", remedy)
        if manifest["corpus_fingerprint"] != corpus.fingerprint:
            raise UserError(
                f"{folder} was packed over corpus {manifest['corpus_fingerprint']},"
                f" this is {corpus.fingerprint}: remove it and {remedy}"
            )
        if remote is None:
            check_sizes(folder, manifest["files"])
        return cls(folder=folder, manifest=manifest, remote=remote)

    @property
    def fingerprint(self) -> str:
        """Names the content: corpus, length, mode, seed and examples."""
        return str(self.manifest["fingerprint"])

    @property
    def num_examples(self) -> int:
        """Examples of the train split."""
        return int(self.manifest["num_examples"])

    def examples(self, split: str) -> list[Examples]:
        """The examples of "train" or "held_out", an entry for each of `Corpus.shards`."""
        return [Examples(**self.arrays(record)) for record in self.records(split)]

    def packed_examples(self, split: str) -> list[PackedExamples]:
        """The same of mode `packed`, whose rows are blocks instead of two segments."""
        return [PackedExamples(**self.arrays(record)) for record in self.records(split)]

    def shard_examples(self, split: str, index: int) -> Examples | PackedExamples:
        """Those of one shard; at an address they are fetched now."""
        kind = PackedExamples if self.mode == "packed" else Examples
        return kind(**self.arrays(self.records(split)[index]))

    def records(self, split: str) -> list[dict[str, Any]]:
        """The manifest's entries of the example files of a split, one a shard."""
        return [record for record in self.manifest["files"] if record["split"] == split]

    def arrays(self, record: Mapping[str, Any]) -> dict[str, Array]:
        """What the file of one of the manifest's records holds."""
        return _arrays_of(self.folder, self.remote, record)

    @property
    def mode(self) -> str:
        """One of PACKING_MODES."""
        return str(self.manifest["mode"])


def packing_folder(corpus_folder: Path, length: int, mode: str) -> Path:
    """Where a packing of that length and mode lies."""
    return corpus_folder / f"pack_{length}_{mode}"


def token_file_records(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The manifest's entries of all token files, train first."""
    return [record for split in SPLITS for record in manifest["splits"][split]["shards"]]


def read_manifest(folder: Path | RemoteFolder, what: str, remedy: str) -> dict[str, Any]:
    """Reads folder/manifest.json (UserError: missing, unreadable or of another format version)."""
    path: Path | RemoteFolder = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is no {what} (it has no manifest.json): {remedy}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is damaged (not a manifest): remove {folder}, then {remedy}"
        ) from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this electra_dist reads {FORMAT_VERSION}:"
            f" use the version that wrote it, or {remedy}"
        )
    return dict(manifest)


def check_sizes(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Raises UserError naming the first file that is missing or has not the recorded size."""
    for record in records:
        path = folder / record["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != record["bytes"]:
            found = (
                "is missing" if size is None else f"has {size} bytes instead of {record['bytes']}"
            )
            raise UserError(f"{path} {found}: copy the folder again or build it again")


def _arrays_of(
    folder: Path, remote: RemoteFolder | None, record: Mapping[str, Any]
) -> dict[str, Array]:
    if remote is None:
        return read_arrays(folder / record["file"])
    return remote.read(record, read_arrays)


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> FileRecord:
    """Writes a safetensors file (temporary name, fsync, rename) and returns its size and hash."""
    # Not save_file: that creates the file with mode 0600, and a corpus is read by a whole group.
    return write_bytes(path, safetensors.numpy.save(dict(arrays)))


def write_json(path: Path, value: object) -> FileRecord:
    """Writes JSON in the same way."""
    return write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> FileRecord:
    """Writes a file so that a reader sees all of it or nothing; returns its size and hash."""
    write_bytes_atomic(path, data)
    return FileRecord(file=path.name, bytes=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))


def commit_folder(building: Path, final: Path) -> None:
    """Gives a finished folder its name, and makes the name survive a crash."""
    fsync_folder(building)
    building.rename(final)
    fsync_folder(final.parent)


def file_xxh3_128(path: Path) -> str:
    """xxh3-128 of a file's bytes, hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint_of(parts: Iterable[str]) -> str:
    """xxh3-128 over the lines, in the order given."""
    return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())
