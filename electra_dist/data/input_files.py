"""Finding and opening the files behind --input: local paths, globs, folders, fsspec addresses."""

import bz2
import glob
import gzip
import lzma
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from electra_dist.errors import UserError

_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"),
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
}
# Binary containers that a line reader would only turn into quarantine records.
_UNREADABLE_SUFFIXES = {".zip", ".tar", ".tgz", ".7z", ".lz4", ".arrow"}


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the input (for source hf: one dataset)."""

    address: str
    """Local path or fsspec address: what opens it."""
    name: str
    """Relative to the folder it was found in, else as given: nothing that differs by machine."""
    given: str
    """The --input word that led to it."""
    num_bytes: int | None
    """Size as stored; None where the store does not say."""
    version: str
    """Changes when the file changes: its time or tag."""


def find_files(inputs: Sequence[str], kind: str = "text") -> list[InputFile]:  # noqa: ARG001
    """The files behind a list of files, folders (all below, sorted, without hidden ones) and globs.

    Raises UserError for a path that is missing, a folder or glob without files, or a container that
    is not read here.
    """
    if not inputs:
        raise UserError("--input is empty: give at least one file, folder or glob")
    files = [file for given in inputs for file in _expand(given)]
    for file in files:
        suffix = PurePosixPath(file.address).suffix.lower()
        if suffix in _UNREADABLE_SUFFIXES:
            raise UserError(
                f"--input {file.address} is a {suffix} file, which is not read here: give plain"
                " text, JSON lines or Parquet, as they are or as .gz, .xz, .zst or .bz2"
            )
    return files


@contextmanager
def open_stream(file: InputFile) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file."""
    with Path(file.address).open("rb") as raw:
        opener = _OPENERS.get(PurePosixPath(file.address).suffix.lower())
        if opener is None:
            yield raw
            return
        with opener(raw) as stream:
            yield cast(BinaryIO, stream)


def is_compressed(file: InputFile) -> bool:
    """Whether `open_stream` decompresses."""
    return PurePosixPath(file.address).suffix.lower() in _OPENERS


def _expand(given: str) -> list[InputFile]:
    path = Path(given)
    if path.is_file():
        return [_local(path, path.name, given)]
    if path.is_dir():
        below = ((file.relative_to(path), file) for file in path.rglob("*") if file.is_file())
        visible = [(n, f) for n, f in below if not any(part.startswith(".") for part in n.parts)]
        found = [_local(f, n.as_posix(), given) for n, f in sorted(visible)]
    elif glob.has_magic(given):
        matches = sorted(glob.glob(given, recursive=True))  # noqa: PTH207 (keeps the spelling given)
        found = [_local(Path(match), match, given) for match in matches if Path(match).is_file()]
    else:
        raise UserError(f"--input {given} does not exist: check the path")
    if not found:
        raise UserError(f"--input {given} leads to no file: check the folder or the pattern")
    return found


def _local(path: Path, name: str, given: str) -> InputFile:
    if not os.access(path, os.R_OK):
        raise UserError(f"--input {path} may not be read by this user: change its rights")
    stat = path.stat()
    return InputFile(str(path), name, given, stat.st_size, str(stat.st_mtime_ns))
